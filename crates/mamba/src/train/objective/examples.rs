//! Texts with what they are to become, from JSON lines:
//!
//! | objective | a line |
//! |---|---|
//! | `contrastive` | `{ "anchor": …, "positive": …, "negatives": […] }`; the last may be left out |
//! | `distill` | `{ "text": …, "vector": [numbers] }` |
//! | `classify` | `{ "text": …, "label": "name" }` |
//!
//! A text is a string or a list of token ids.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::data::{Format, Sources, read_lines, token_ids};
use super::super::run::ObjectiveConfig;
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// What a text is to become.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Like the second text and unlike the others.
    Pair,
    /// This vector.
    Vector(Vec<f32>),
    /// The label of this number.
    Label(usize),
}

/// One or more texts, and what is wanted of the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids, at least one each.
    pub texts: Vec<Vec<u32>>,
    /// See [`Target`].
    pub target: Target,
}

/// All examples of a run; they are kept in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    /// In the order of the files.
    pub all: Vec<Example>,
    /// The labels' names, sorted.
    pub labels: Vec<String>,
    /// SHA-256 of them all.
    pub hash: [u8; 32],
}

impl Examples {
    /// Reads examples; texts are cut after `length` tokens.
    ///
    /// # Errors
    /// `DATA_EMPTY`, `DATA_INVALID` naming the line, `OPTION_INVALID` for other files than JSON lines,
    /// `TOKENIZER_MISSING`, `TOKEN_OUT_OF_RANGE`, `FILE_NOT_FOUND`, `IO_ERROR`.
    pub fn read(
        sources: &Sources,
        objective: &ObjectiveConfig,
        tokenizer: Option<&Tokenizer>,
        length: usize,
        vocab_size: usize,
        d_model: usize,
    ) -> Result<Self> {
        let (mut all, mut names, mut hash) = (Vec::new(), Vec::new(), Sha256::new());
        let mut width = None;
        for (path, format) in sources.formats()? {
            if format != Format::Jsonl {
                let value = format!("`{}`, which is {format:?}", path.display()).to_lowercase();
                return Err(Error::option("data.format", value, "`jsonl` for this objective"));
            }
            read_lines(path, &mut |line, number| {
                let invalid = |reason: String| Error::DataInvalid {
                    path: path.into(),
                    reason: format!("line {number}: {reason}"),
                };
                hash.update(line);
                hash.update("\n");
                let value: Value =
                    serde_json::from_str(line).map_err(|error| invalid(format!("not JSON ({error})")))?;
                let text = |what: &str, value: &Value| -> Result<Vec<u32>> {
                    let mut ids = match value {
                        Value::String(text) => tokenizer.ok_or(Error::TokenizerMissing)?.encode(text)?,
                        Value::Array(ids) => token_ids(ids, what).map_err(&invalid)?,
                        _ => {
                            return Err(invalid(format!(
                                "no `{what}` that is a text or a list of token ids"
                            )));
                        }
                    };
                    ids.truncate(length);
                    if let Some(position) = ids.iter().position(|id| *id as usize >= vocab_size) {
                        return Err(Error::TokenOutOfRange {
                            id: i64::from(ids[position]),
                            position,
                            vocab_size,
                        });
                    }
                    if ids.is_empty() { Err(invalid(format!("`{what}` is empty"))) } else { Ok(ids) }
                };
                let example = match objective {
                    ObjectiveConfig::CausalLm => {
                        return Err(Error::Internal { message: "examples of a language model".into() });
                    }
                    ObjectiveConfig::Contrastive { .. } => {
                        let mut texts =
                            vec![text("anchor", &value["anchor"])?, text("positive", &value["positive"])?];
                        match &value["negatives"] {
                            Value::Null => {}
                            Value::Array(negatives) => {
                                for negative in negatives {
                                    texts.push(text("negatives", negative)?);
                                }
                            }
                            _ => return Err(invalid("`negatives` is no list of texts".into())),
                        }
                        Example { texts, target: Target::Pair }
                    }
                    ObjectiveConfig::Distill { .. } => {
                        let vector = value["vector"].as_array().and_then(|values| {
                            values.iter().map(|x| x.as_f64().map(|x| x as f32)).collect::<Option<Vec<f32>>>()
                        });
                        let vector = vector.ok_or_else(|| invalid("no `vector` of numbers".into()))?;
                        let expected = *width.get_or_insert(vector.len());
                        if vector.len() != expected || vector.is_empty() || vector.len() > d_model {
                            let reason = format!(
                                "a vector of {}, expected {} (as the first one's, at most d_model, {d_model})",
                                vector.len(),
                                expected.clamp(1, d_model)
                            );
                            return Err(invalid(reason));
                        }
                        if !vector.iter().all(|x| x.is_finite()) || vector.iter().all(|x| *x == 0.0) {
                            return Err(invalid("a `vector` without a direction".into()));
                        }
                        Example { texts: vec![text("text", &value["text"])?], target: Target::Vector(vector) }
                    }
                    ObjectiveConfig::Classify { .. } => {
                        let Value::String(label) = &value["label"] else {
                            return Err(invalid("no `label` that is a text".into()));
                        };
                        names.push(label.clone());
                        Example { texts: vec![text("text", &value["text"])?], target: Target::Label(0) }
                    }
                };
                all.push(example);
                Ok(())
            })?;
        }
        if all.is_empty() {
            return Err(Error::DataEmpty {
                origin: "`data.files`".into(),
                expected: "at least one example".into(),
            });
        }
        let mut labels = names.clone();
        labels.sort();
        labels.dedup();
        if names.len() == all.len() {
            if labels.len() < 2 {
                let expected = "examples of at least two labels".into();
                return Err(Error::DataEmpty {
                    origin: format!("`data.files` (all are `{}`)", names[0]),
                    expected,
                });
            }
            for (example, name) in all.iter_mut().zip(&names) {
                example.target = Target::Label(labels.binary_search(name).unwrap_or_default());
            }
        }
        Ok(Self { all, labels, hash: hash.finalize().into() })
    }
}
