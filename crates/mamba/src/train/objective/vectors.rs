//! Losses of the vectors of texts, with their gradients. f64 inside: the vectors are few.

use super::{Example, Target};
use crate::train::run::{DistillLoss, ObjectiveConfig};

/// A linear map from a vector to the labels' logits: weight [labels, d], bias [labels].
pub struct Head {
    /// Row-major.
    pub weight: Vec<f32>,
    /// One for each label.
    pub bias: Vec<f32>,
}

/// A loss and its gradients.
pub struct Loss {
    /// The mean over the examples.
    pub value: f64,
    /// Of each vector, [n, d].
    pub vectors: Vec<f32>,
    /// Of the head.
    pub head: Option<Head>,
    /// Examples whose label was the most probable.
    pub correct: usize,
}

/// The loss of a batch. `vectors` [n, d]: of the first texts of all examples, then of their second ones, then of all
/// others, example by example.
pub fn loss(
    objective: &ObjectiveConfig,
    examples: &[&Example],
    vectors: &[f32],
    d: usize,
    head: Option<&Head>,
) -> Loss {
    match objective {
        ObjectiveConfig::Contrastive { temperature, .. } => info_nce(examples, vectors, d, *temperature),
        ObjectiveConfig::Distill { loss, .. } => distill(examples, vectors, d, *loss),
        ObjectiveConfig::Classify { .. } | ObjectiveConfig::CausalLm => classify(examples, vectors, d, head),
    }
}

/// Scaled to length 1, and the length; a zero vector stays zero.
fn unit(x: &[f32]) -> (Vec<f64>, f64) {
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    (x.iter().map(|x| f64::from(*x) / norm).collect(), norm)
}

/// The gradient by x where `grad` is that by x / |x|.
fn through_unit(unit: &[f64], norm: f64, grad: &[f64]) -> Vec<f32> {
    let along: f64 = std::iter::zip(unit, grad).map(|(u, g)| u * g).sum();
    std::iter::zip(unit, grad).map(|(u, g)| ((g - along * u) / norm) as f32).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    std::iter::zip(a, b).map(|(a, b)| a * b).sum()
}

/// −log softmax of logits at `target`, and its gradient; `None` logits take no part.
fn cross_entropy(logits: &[Option<f64>], target: usize) -> (f64, Vec<f64>) {
    let max = logits.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|logit| logit.map_or(0.0, |logit| (logit - max).exp())).collect();
    let sum: f64 = exp.iter().sum();
    let loss = sum.ln() + max - logits[target].unwrap_or(max);
    let mut grad: Vec<f64> = exp.iter().map(|exp| exp / sum).collect();
    grad[target] -= 1.0;
    (loss, grad)
}

/// InfoNCE: each first text is to be most like its own second one among the second ones and negatives of all examples.
/// A candidate whose text is the right one's, or the first text itself, is no negative.
fn info_nce(examples: &[&Example], vectors: &[f32], d: usize, temperature: f64) -> Loss {
    let n = examples.len();
    let (units, norms): (Vec<_>, Vec<_>) = vectors.chunks_exact(d).map(unit).unzip();
    let (anchors, candidates) = units.split_at(n);
    let texts: Vec<&[u32]> = examples
        .iter()
        .map(|example| &example.texts[1][..])
        .chain(examples.iter().flat_map(|example| example.texts[2..].iter().map(Vec::as_slice)))
        .collect();
    let mut grads = vec![vec![0.0; d]; units.len()];
    let mut value = 0.0;
    for (i, example) in examples.iter().enumerate() {
        let logits: Vec<Option<f64>> = candidates
            .iter()
            .enumerate()
            .map(|(j, candidate)| {
                let same = j != i && (texts[j] == example.texts[1] || texts[j] == example.texts[0]);
                (!same).then(|| dot(&anchors[i], candidate) / temperature)
            })
            .collect();
        let (loss, grad) = cross_entropy(&logits, i);
        value += loss / n as f64;
        for (j, grad) in grad.iter().enumerate().filter(|(_, grad)| **grad != 0.0) {
            let scale = grad / temperature / n as f64;
            for k in 0..d {
                grads[i][k] += scale * candidates[j][k];
                grads[n + j][k] += scale * anchors[i][k];
            }
        }
    }
    let vectors = (0..units.len()).flat_map(|i| through_unit(&units[i], norms[i], &grads[i])).collect();
    Loss { value, vectors, head: None, correct: 0 }
}

/// The distance to given vectors, of the first so many components as these have.
fn distill(examples: &[&Example], vectors: &[f32], d: usize, kind: DistillLoss) -> Loss {
    let n = examples.len() as f64;
    let (mut value, mut grads) = (0.0, Vec::with_capacity(vectors.len()));
    for (example, vector) in examples.iter().zip(vectors.chunks_exact(d)) {
        let Target::Vector(target) = &example.target else { continue };
        let (vector, rest) = vector.split_at(target.len());
        match kind {
            DistillLoss::Cosine => {
                let ((unit_vector, norm), (unit_target, _)) = (unit(vector), unit(target));
                value += (1.0 - dot(&unit_vector, &unit_target)) / n;
                let grad: Vec<f64> = unit_target.iter().map(|t| -t / n).collect();
                grads.extend(through_unit(&unit_vector, norm, &grad));
            }
            DistillLoss::Mse => {
                let width = target.len() as f64;
                for (x, t) in vector.iter().zip(target) {
                    let difference = f64::from(*x) - f64::from(*t);
                    value += difference.powi(2) / width / n;
                    grads.push((2.0 * difference / width / n) as f32);
                }
            }
        }
        grads.resize(grads.len() + rest.len(), 0.0);
    }
    Loss { value, vectors: grads, head: None, correct: 0 }
}

/// Cross-entropy of the labels.
fn classify(examples: &[&Example], vectors: &[f32], d: usize, head: Option<&Head>) -> Loss {
    let mut result = Loss { value: 0.0, vectors: vec![0.0; vectors.len()], head: None, correct: 0 };
    let Some(head) = head else { return result };
    let n = examples.len() as f64;
    let mut weight = vec![0.0; head.weight.len()];
    let mut bias = vec![0.0; head.bias.len()];
    for (i, example) in examples.iter().enumerate() {
        let Target::Label(label) = example.target else { continue };
        let x: Vec<f64> = vectors[i * d..(i + 1) * d].iter().map(|x| f64::from(*x)).collect();
        let logits: Vec<Option<f64>> = head
            .weight
            .chunks_exact(d)
            .zip(&head.bias)
            .map(|(row, bias)| {
                Some(std::iter::zip(row, &x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias))
            })
            .collect();
        let best = (0..logits.len()).fold(0, |best, j| if logits[j] > logits[best] { j } else { best });
        result.correct += usize::from(best == label);
        let (loss, grad) = cross_entropy(&logits, label);
        result.value += loss / n;
        for (j, grad) in grad.iter().enumerate() {
            bias[j] += grad / n;
            for k in 0..d {
                weight[j * d + k] += grad / n * x[k];
                result.vectors[i * d + k] += (grad / n * f64::from(head.weight[j * d + k])) as f32;
            }
        }
    }
    let to_f32 = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect();
    result.head = Some(Head { weight: to_f32(weight), bias: to_f32(bias) });
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::philox::uniform;
    use crate::train::run::PoolingConfig;

    fn random(n: usize, key: u64) -> Vec<f32> {
        (0..n).map(|i| (2.0 * uniform(key, i as u64) - 1.0) as f32).collect()
    }

    /// The gradient by central differences.
    fn check(objective: &ObjectiveConfig, examples: &[Example], n: usize, head: Option<&Head>) {
        const D: usize = 5;
        let examples: Vec<&Example> = examples.iter().collect();
        let mut vectors = random(n * D, 1);
        let got = loss(objective, &examples, &vectors, D, head);
        let scale = got.vectors.iter().map(|g| f64::from(g.abs())).fold(0.0, f64::max);
        assert!(scale > 1e-3);
        for i in 0..n * D {
            const STEP: f32 = 1.0 / 512.0;
            let x = vectors[i];
            vectors[i] = x + STEP;
            let above = loss(objective, &examples, &vectors, D, head).value;
            vectors[i] = x - STEP;
            let below = loss(objective, &examples, &vectors, D, head).value;
            vectors[i] = x;
            let expected = (above - below) / f64::from((x + STEP) - (x - STEP));
            let error = (f64::from(got.vectors[i]) - expected).abs();
            assert!(error < 1e-3 * scale, "{i}: {} and {expected}", got.vectors[i]);
        }
    }

    fn pair(texts: &[u32]) -> Example {
        Example { texts: texts.iter().map(|id| vec![*id]).collect(), target: Target::Pair }
    }

    #[test]
    fn gradients_by_finite_differences() {
        let pooling = PoolingConfig::Mean;
        let contrastive = ObjectiveConfig::Contrastive { pooling, temperature: 0.3 };
        check(&contrastive, &[pair(&[1, 2, 3]), pair(&[4, 5]), pair(&[6, 7, 8, 9])], 9, None);
        let vectors: Vec<Example> = (0..3)
            .map(|i| Example { texts: vec![vec![1]], target: Target::Vector(random(4, 10 + i)) })
            .collect();
        for kind in [DistillLoss::Cosine, DistillLoss::Mse] {
            check(&ObjectiveConfig::Distill { pooling, loss: kind }, &vectors, 3, None);
        }
        let labels: Vec<Example> =
            (0..4).map(|i| Example { texts: vec![vec![1]], target: Target::Label(i % 3) }).collect();
        let head = Head { weight: random(15, 3), bias: random(3, 4) };
        check(&ObjectiveConfig::Classify { pooling }, &labels, 4, Some(&head));
    }

    #[test]
    fn info_nce_of_known_vectors() {
        // Orthogonal anchors, each with its own direction as the positive: logits 1/τ and 0.
        let examples = [pair(&[1, 2]), pair(&[3, 4])];
        let vectors = [1.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 4.0];
        let value = |examples: &[Example]| {
            let examples: Vec<&Example> = examples.iter().collect();
            info_nce(&examples, &vectors, 2, 0.5).value
        };
        assert!((value(&examples) - (1.0 + (-2f64).exp()).ln()).abs() < 1e-12);
        // The same text on the other side is no negative.
        assert_eq!(value(&[pair(&[1, 2]), pair(&[3, 2])]), 0.0);
    }

    #[test]
    fn a_zero_vector_gives_no_nan() {
        let examples = [pair(&[1, 2]), pair(&[3, 4])];
        let examples: Vec<&Example> = examples.iter().collect();
        let got = info_nce(&examples, &[0.0; 8], 2, 0.05);
        assert!(got.value.is_finite() && got.vectors.iter().all(|g| g.is_finite()));
    }
}
