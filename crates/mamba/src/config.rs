//! The shape of a model, read from `config.json` of the official or of the Hugging Face kind.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Which normalization the blocks use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / rms(x) ⊙ weight.
    Rms,
    /// (x − mean) / std ⊙ weight + bias.
    Layer,
}

/// The shape of a Mamba-1 language model, everything resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Entries of the vocabulary, as the file states it.
    pub vocab_size: usize,
    /// Rows of the embedding: `vocab_size` rounded up to `pad_vocab_size_multiple`, or what the checkpoint has.
    pub padded_vocab_size: usize,
    /// See `padded_vocab_size`.
    pub pad_vocab_size_multiple: usize,
    /// Channels of the mixer: expand · d_model.
    pub d_inner: usize,
    /// States per channel.
    pub d_state: usize,
    /// Width of the convolution.
    pub d_conv: usize,
    /// Rank of the step size's projection.
    pub dt_rank: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether in_proj and out_proj have biases.
    pub bias: bool,
    /// RMSNorm or LayerNorm.
    pub norm: NormKind,
    /// Added under the norm's root.
    pub norm_epsilon: f64,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// How the model was trained; here the residual is always f32.
    pub residual_in_fp32: bool,
    /// Beginning-of-text id, if the file names one.
    pub bos_token_id: Option<u32>,
    /// End-of-text ids, if the file names any.
    pub eos_token_ids: Vec<u32>,
}

/// Largest of any dimension: far above every published model, far below what could overflow.
const MAX_DIMENSION: u64 = 1 << 24;
/// Their tensors are listed by name before any is looked for.
const MAX_LAYERS: u64 = 10_000;
/// A model of more elements than this is a mistake in the file (2⁴⁰ f32 are 4 TiB).
const MAX_PARAMETERS: u128 = 1 << 40;

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, naming the field.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| invalid("(file)", &format!("not JSON ({error})"), "a JSON object"))?;
        let Value::Object(fields) = value else {
            return Err(invalid("(file)", &shown(&value), "a JSON object"));
        };
        // A converted checkpoint may have kept the official fields beside its own.
        let config = if fields.contains_key("hidden_size") || fields.contains_key("model_type") {
            Self::from_hugging_face(&Fields { fields: &fields, prefix: "" })
        } else if fields.contains_key("d_model") {
            Self::from_official(&Fields { fields: &fields, prefix: "" })
        } else {
            Err(invalid(
                "d_model",
                "missing",
                "a positive integer (or `hidden_size`, in the Hugging Face format)",
            ))
        }?;
        if config.elements() > MAX_PARAMETERS {
            let total = config.elements().to_string();
            return Err(invalid("(file)", &format!("a model of {total} parameters"), "at most 2^40"));
        }
        Ok(config)
    }

    /// `mamba_ssm/models/config_mamba.py`.
    fn from_official(top: &Fields) -> Result<Self> {
        let empty = Map::new();
        let ssm = match top.fields.get("ssm_cfg") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(ssm)) => ssm,
            Some(other) => return Err(invalid("ssm_cfg", &shown(other), "an object")),
        };
        let ssm = Fields { fields: ssm, prefix: "ssm_cfg." };
        match ssm.fields.get("layer") {
            None => {}
            Some(Value::String(layer)) if layer == "Mamba1" => {}
            Some(other) => return Err(invalid("ssm_cfg.layer", &shown(other), "\"Mamba1\"")),
        }
        match top.fields.get("attn_layer_idx") {
            None | Some(Value::Null) => {}
            Some(Value::Array(layers)) if layers.is_empty() => {}
            Some(other) => return Err(invalid("attn_layer_idx", &shown(other), "[] (no attention layers)")),
        }
        if let Some(width) = top.fields.get("d_intermediate").filter(|width| **width != json!(0)) {
            return Err(invalid("d_intermediate", &shown(width), "0 (no MLP)"));
        }
        let d_model = top.size("d_model", None)?;
        let vocab_size = top.size("vocab_size", Some(50277))?;
        let multiple = top.size("pad_vocab_size_multiple", Some(8))?;
        Ok(Self {
            d_model,
            n_layer: top.size_to("n_layer", Some(64), MAX_LAYERS)?,
            vocab_size,
            padded_vocab_size: vocab_size.next_multiple_of(multiple),
            pad_vocab_size_multiple: multiple,
            d_inner: expanded(&ssm, d_model)?,
            d_state: ssm.size_to("d_state", Some(16), 256)?,
            d_conv: ssm.size_to("d_conv", Some(4), 16)?,
            dt_rank: ssm.rank("dt_rank", d_model)?,
            conv_bias: ssm.flag("conv_bias", true)?,
            bias: ssm.flag("bias", false)?,
            norm: if top.flag("rms_norm", true)? { NormKind::Rms } else { NormKind::Layer },
            norm_epsilon: top.epsilon("norm_epsilon")?,
            tie_embeddings: top.flag("tie_embeddings", true)?,
            residual_in_fp32: top.flag("residual_in_fp32", true)?,
            bos_token_id: top.ids("bos_token_id")?.first().copied(),
            eos_token_ids: top.ids("eos_token_id")?,
        })
    }

    /// `transformers/models/mamba/configuration_mamba.py`.
    fn from_hugging_face(top: &Fields) -> Result<Self> {
        match top.fields.get("model_type") {
            Some(Value::String(kind)) if kind == "mamba" => {}
            other => {
                let value = other.map_or("missing".into(), shown);
                return Err(invalid("model_type", &value, "\"mamba\" (Mamba-1)"));
            }
        }
        if let Some(act) = top.fields.get("hidden_act").filter(|act| **act != json!("silu")) {
            return Err(invalid("hidden_act", &shown(act), "\"silu\""));
        }
        let d_model = top.size("hidden_size", None)?;
        let vocab_size = top.size("vocab_size", Some(50280))?;
        let multiple = top.size("pad_vocab_size_multiple", Some(1))?;
        let bias = top.flag("use_bias", false)?;
        Ok(Self {
            d_model,
            n_layer: top.size_to("num_hidden_layers", Some(32), MAX_LAYERS)?,
            vocab_size,
            padded_vocab_size: vocab_size.next_multiple_of(multiple),
            pad_vocab_size_multiple: multiple,
            d_inner: match top.fields.contains_key("intermediate_size") {
                true => top.size("intermediate_size", None)?,
                false => expanded(top, d_model)?,
            },
            d_state: top.size_to("state_size", Some(16), 256)?,
            d_conv: top.size_to("conv_kernel", Some(4), 16)?,
            dt_rank: top.rank("time_step_rank", d_model)?,
            conv_bias: top.flag("use_conv_bias", true)?,
            bias,
            norm: NormKind::Rms,
            norm_epsilon: top.epsilon("layer_norm_epsilon")?,
            tie_embeddings: top.flag("tie_word_embeddings", true)?,
            residual_in_fp32: top.flag("residual_in_fp32", true)?,
            bos_token_id: top.ids("bos_token_id")?.first().copied(),
            eos_token_ids: top.ids("eos_token_id")?,
        })
    }

    /// The configuration in the official format, everything resolved.
    #[must_use]
    pub fn to_official_json(&self) -> Value {
        let mut value = json!({
            "d_model": self.d_model,
            "n_layer": self.n_layer,
            "vocab_size": self.vocab_size,
            "ssm_cfg": {
                "layer": "Mamba1",
                "d_state": self.d_state,
                "d_conv": self.d_conv,
                "expand": self.d_inner as f64 / self.d_model as f64,
                "dt_rank": self.dt_rank,
                "conv_bias": self.conv_bias,
                "bias": self.bias,
            },
            "rms_norm": self.norm == NormKind::Rms,
            "norm_epsilon": self.norm_epsilon,
            "residual_in_fp32": self.residual_in_fp32,
            "fused_add_norm": true,
            "pad_vocab_size_multiple": self.pad_vocab_size_multiple,
            "tie_embeddings": self.tie_embeddings,
        });
        if self.d_inner.is_multiple_of(self.d_model) {
            value["ssm_cfg"]["expand"] = json!(self.d_inner / self.d_model);
        }
        if let Some(bos) = self.bos_token_id {
            value["bos_token_id"] = json!(bos);
        }
        if !self.eos_token_ids.is_empty() {
            value["eos_token_id"] = json!(self.eos_token_ids);
        }
        value
    }

    /// The configuration as `transformers` states it, for `MambaForCausalLM`.
    ///
    /// # Errors
    /// `CONFIG_INVALID` for a model that it does not have: with LayerNorm.
    pub fn to_hugging_face_json(&self) -> Result<Value> {
        if self.norm != NormKind::Rms {
            return Err(invalid("rms_norm", "false", "true (transformers has RMSNorm only)"));
        }
        let mut value = json!({
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layer,
            "vocab_size": self.padded_vocab_size,
            "state_size": self.d_state,
            "conv_kernel": self.d_conv,
            "expand": self.d_inner as f64 / self.d_model as f64,
            "intermediate_size": self.d_inner,
            "time_step_rank": self.dt_rank,
            "use_conv_bias": self.conv_bias,
            "use_bias": self.bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": self.norm_epsilon,
            "residual_in_fp32": self.residual_in_fp32,
            "tie_word_embeddings": self.tie_embeddings,
        });
        if self.d_inner.is_multiple_of(self.d_model) {
            value["expand"] = json!(self.d_inner / self.d_model);
        }
        if let Some(bos) = self.bos_token_id {
            value["bos_token_id"] = json!(bos);
        }
        match self.eos_token_ids[..] {
            [] => {}
            [eos] => value["eos_token_id"] = json!(eos),
            _ => value["eos_token_id"] = json!(self.eos_token_ids),
        }
        Ok(value)
    }

    /// Name and shape of every tensor that the model needs, under the official names.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { d_model, d_inner, d_state, d_conv, dt_rank, .. } = *self;
        let layer_norm = self.norm == NormKind::Layer;
        let mut tensors = vec![("backbone.embedding.weight".into(), vec![self.padded_vocab_size, d_model])];
        for layer in 0..self.n_layer {
            let mut add = |name: &str, shape: &[usize], present: bool| {
                if present {
                    tensors.push((format!("backbone.layers.{layer}.{name}"), shape.to_vec()));
                }
            };
            add("norm.weight", &[d_model], true);
            add("norm.bias", &[d_model], layer_norm);
            add("mixer.in_proj.weight", &[2 * d_inner, d_model], true);
            add("mixer.in_proj.bias", &[2 * d_inner], self.bias);
            add("mixer.conv1d.weight", &[d_inner, 1, d_conv], true);
            add("mixer.conv1d.bias", &[d_inner], self.conv_bias);
            add("mixer.x_proj.weight", &[dt_rank + 2 * d_state, d_inner], true);
            add("mixer.dt_proj.weight", &[d_inner, dt_rank], true);
            add("mixer.dt_proj.bias", &[d_inner], true);
            add("mixer.A_log", &[d_inner, d_state], true);
            add("mixer.D", &[d_inner], true);
            add("mixer.out_proj.weight", &[d_model, d_inner], true);
            add("mixer.out_proj.bias", &[d_model], self.bias);
        }
        tensors.push(("backbone.norm_f.weight".into(), vec![d_model]));
        if layer_norm {
            tensors.push(("backbone.norm_f.bias".into(), vec![d_model]));
        }
        if !self.tie_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.padded_vocab_size, d_model]));
        }
        tensors
    }

    /// Number of parameters, a tied head counted once.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.elements() as usize
    }

    /// The same without listing the tensors of a layer count that may be a lie.
    fn elements(&self) -> u128 {
        let [d_model, d_inner, d_state, d_conv, dt_rank, vocab, layers] = [
            self.d_model,
            self.d_inner,
            self.d_state,
            self.d_conv,
            self.dt_rank,
            self.padded_vocab_size,
            self.n_layer,
        ]
        .map(|n| n as u128);
        let norm = d_model * if self.norm == NormKind::Layer { 2 } else { 1 };
        let layer = norm
            + 2 * d_inner * d_model
            + d_inner * d_conv
            + (dt_rank + 2 * d_state) * d_inner
            + d_inner * dt_rank
            + d_inner
            + d_inner * d_state
            + d_inner
            + d_model * d_inner
            + if self.conv_bias { d_inner } else { 0 }
            + if self.bias { 2 * d_inner + d_model } else { 0 };
        layers * layer + norm + vocab * d_model * if self.tie_embeddings { 1 } else { 2 }
    }
}

/// Some level of the document; `prefix` leads to it in messages.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    prefix: &'static str,
}

impl Fields<'_> {
    fn invalid(&self, field: &str, value: Option<&Value>, expected: &str) -> Error {
        invalid(&format!("{}{field}", self.prefix), &value.map_or("missing".into(), shown), expected)
    }

    fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        self.size_to(field, default, MAX_DIMENSION)
    }

    fn size_to(&self, field: &str, default: Option<usize>, max: u64) -> Result<usize> {
        match (self.fields.get(field), default) {
            (None, Some(default)) => Ok(default),
            (Some(value), _) if value.as_u64().is_some_and(|n| (1..=max).contains(&n)) => {
                Ok(value.as_u64().unwrap_or_default() as usize)
            }
            (value, _) => Err(self.invalid(field, value, &format!("an integer from 1 to {max}"))),
        }
    }

    /// A rank, or 'auto': ⌈d_model / 16⌉.
    fn rank(&self, field: &str, d_model: usize) -> Result<usize> {
        match self.fields.get(field) {
            None => Ok(d_model.div_ceil(16)),
            Some(Value::String(auto)) if auto == "auto" => Ok(d_model.div_ceil(16)),
            Some(value) if value.is_u64() => self.size(field, None),
            value => Err(self.invalid(field, value, "a positive integer or \"auto\"")),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            value => Err(self.invalid(field, value, "true or false")),
        }
    }

    fn epsilon(&self, field: &str) -> Result<f64> {
        match self.fields.get(field) {
            None => Ok(1e-5),
            Some(value) => value
                .as_f64()
                .filter(|eps| (0.0..1.0).contains(eps))
                .ok_or_else(|| self.invalid(field, Some(value), "a number from 0 to 1")),
        }
    }

    /// One id, several, or none.
    fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.invalid(field, Some(value), "a token id or a list of them"))
        };
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }
}

/// `expand` (2 unless given) times d_model, which must be an integer.
fn expanded(fields: &Fields, d_model: usize) -> Result<usize> {
    let value = fields.fields.get("expand");
    let d_inner = value.map_or(Some(2.0), Value::as_f64).map(|expand| expand * d_model as f64);
    match d_inner {
        Some(d) if d.fract() == 0.0 && d >= 1.0 && d <= MAX_DIMENSION as f64 => Ok(d as usize),
        _ => Err(fields.invalid("expand", value, "a positive number that makes expand · d_model an integer")),
    }
}

fn invalid(field: &str, value: &str, expected: &str) -> Error {
    Error::ConfigInvalid { field: field.into(), value: value.into(), expected: expected.into() }
}

/// A value as it stands in the file, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFICIAL: &str = r#"{"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
        "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8}"#;
    const HUGGING_FACE: &str = r#"{"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24,
        "vocab_size": 50280, "state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 1536,
        "time_step_rank": 48, "use_bias": false, "use_conv_bias": true, "layer_norm_epsilon": 1e-5,
        "hidden_act": "silu", "eos_token_id": 0, "bos_token_id": 0, "tie_word_embeddings": true}"#;

    #[test]
    fn both_kinds_describe_the_130m_model() {
        for text in [OFFICIAL, HUGGING_FACE] {
            let config = Config::from_json(text).unwrap();
            assert_eq!(
                (
                    config.d_model,
                    config.n_layer,
                    config.d_inner,
                    config.d_state,
                    config.d_conv,
                    config.dt_rank
                ),
                (768, 24, 1536, 16, 4, 48)
            );
            assert_eq!(config.padded_vocab_size, 50280);
            assert_eq!(config.parameter_count(), 129_135_360); // as published
            let listed: usize =
                config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(config.parameter_count(), listed);
            let again = Config::from_json(&config.to_official_json().to_string()).unwrap();
            assert_eq!(config.tensors(), again.tensors());
        }
    }

    #[test]
    fn unusual_shapes() {
        let config = Config::from_json(
            r#"{"d_model": 10, "n_layer": 1, "vocab_size": 11, "rms_norm": false, "tie_embeddings": false,
                "ssm_cfg": {"d_state": 3, "d_conv": 2, "expand": 1.5, "dt_rank": "auto", "conv_bias": false,
                "bias": true}}"#,
        )
        .unwrap();
        assert_eq!((config.d_inner, config.dt_rank, config.padded_vocab_size), (15, 1, 16));
        let names: Vec<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
        for name in ["lm_head.weight", "backbone.norm_f.bias", "backbone.layers.0.mixer.out_proj.bias"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        assert!(!names.iter().any(|n| n.ends_with("conv1d.bias")));
        let listed: usize = config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(config.parameter_count(), listed);
    }

    #[test]
    fn of_both_kinds_of_fields_hugging_faces_count() {
        let both =
            HUGGING_FACE.replacen('{', r#"{"d_model": 64, "n_layer": 2, "ssm_cfg": {"d_state": 4},"#, 1);
        let both = both.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#);
        let config = Config::from_json(&both).unwrap();
        assert_eq!(
            (config.d_model, config.n_layer, config.d_state, config.tie_embeddings),
            (768, 24, 16, false)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("", "(file)", "JSON"),
            ("[1]", "(file)", "[1]"),
            ("{}", "d_model", "missing"),
            (r#"{"d_model": -1}"#, "d_model", "-1"),
            (r#"{"d_model": 1e3}"#, "d_model", "1000.0"),
            (r#"{"d_model": "768"}"#, "d_model", "\"768\""),
            (r#"{"d_model": 99999999999999}"#, "d_model", "99999999999999"),
            (r#"{"d_model": 8000000, "n_layer": 10000}"#, "(file)", "parameters"),
            (r#"{"d_model": 1, "n_layer": 10001}"#, "n_layer", "10001"),
            (r#"{"d_model": 8, "ssm_cfg": {"d_state": 257}}"#, "ssm_cfg.d_state", "257"),
            (r#"{"d_model": 8, "ssm_cfg": {"d_state": 0}}"#, "ssm_cfg.d_state", "0"),
            (r#"{"d_model": 8, "ssm_cfg": {"d_conv": 17}}"#, "ssm_cfg.d_conv", "17"),
            (r#"{"d_model": 8, "ssm_cfg": {"dt_rank": "big"}}"#, "ssm_cfg.dt_rank", "big"),
            (r#"{"d_model": 8, "ssm_cfg": {"expand": 1.3}}"#, "ssm_cfg.expand", "1.3"),
            (r#"{"d_model": 8, "ssm_cfg": {"layer": "Mamba2"}}"#, "ssm_cfg.layer", "Mamba2"),
            (r#"{"d_model": 8, "ssm_cfg": 3}"#, "ssm_cfg", "3"),
            (r#"{"d_model": 8, "attn_layer_idx": [1]}"#, "attn_layer_idx", "[1]"),
            (r#"{"d_model": 8, "d_intermediate": 16}"#, "d_intermediate", "16"),
            (r#"{"d_model": 8, "rms_norm": "yes"}"#, "rms_norm", "yes"),
            (r#"{"model_type": "mamba2"}"#, "model_type", "mamba2"),
            (r#"{"hidden_size": 8}"#, "model_type", "missing"),
            (r#"{"model_type": "mamba", "hidden_size": 8, "hidden_act": "gelu"}"#, "hidden_act", "gelu"),
            (r#"{"model_type": "mamba", "hidden_size": 8, "eos_token_id": "x"}"#, "eos_token_id", "x"),
        ];
        for (text, expected_field, expected_value) in cases {
            match Config::from_json(text) {
                Err(Error::ConfigInvalid { field, value, .. }) => {
                    assert_eq!(field, expected_field, "{text}");
                    assert!(value.contains(expected_value), "{text}: {value}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
