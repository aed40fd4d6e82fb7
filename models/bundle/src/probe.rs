//! `probe.safetensors`: a linear classifier over frozen features.
//!
//! scores = weight . ((x - mean) / std) + bias, where x is the raw pooled feature, **not** L2-normalised.

use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Why a probe was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum ProbeError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    /// The file is not a complete safetensors file.
    #[error("{path} is not a safetensors file: {message}")]
    Format { path: String, message: String },
    /// A tensor is missing.
    #[error("{path}: expected the tensors weight, bias, mean and std; `{tensor}` is missing")]
    Missing { path: String, tensor: &'static str },
    /// A tensor has another type than F32.
    #[error("{path}: expected `{tensor}` as F32, found {found}")]
    Type { path: String, tensor: &'static str, found: String },
    /// A tensor's shape does not match the others'.
    #[error("{path}: expected `{tensor}` of shape {expected}, found {found:?}")]
    Shape {
        path: String,
        tensor: &'static str,
        /// The shape that the other tensors require.
        expected: String,
        found: Vec<usize>,
    },
    /// A value is NaN or infinite, or a standard deviation is not positive.
    #[error("{path}: `{tensor}` must hold {expected}, found {found} at index {index}")]
    Value {
        path: String,
        tensor: &'static str,
        /// The accepted values, as text.
        expected: &'static str,
        found: f32,
        /// Index in the flattened tensor.
        index: usize,
    },
    /// Class names are missing, cannot be parsed, or are not C in number.
    #[error("{path}: expected metadata `labels` to be a JSON list of {expected} names, found {found}")]
    Labels {
        path: String,
        /// C, the number of classes.
        expected: usize,
        found: String,
    },
}

/// A linear classifier of C classes over D-dimensional features.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// (C, D), row-major; applies to standardised features.
    pub weight: Vec<f32>,
    /// (C), added to the scores.
    pub bias: Vec<f32>,
    /// (D), mean of the training features.
    pub mean: Vec<f32>,
    /// (D), standard deviation of the training features; positive.
    pub std: Vec<f32>,
    /// (C), class names in label order.
    pub labels: Vec<String>,
}

/// A linear classifier for raw pooled features: a probe with its standardisation folded in.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearHead {
    /// (C, D), row-major.
    pub weight: Vec<f32>,
    /// (C), added to the scores.
    pub bias: Vec<f32>,
}

impl Probe {
    /// The same classifier without standardisation: weight / std, and bias - sum(weight mean / std).
    pub fn folded(&self) -> LinearHead {
        let rows = self.weight.chunks_exact(self.dim().max(1)).zip(&self.bias);
        let (mut weight, mut biases) = (Vec::with_capacity(self.weight.len()), Vec::with_capacity(self.classes()));
        for (row, bias) in rows {
            let mut shifted = f64::from(*bias);
            for ((w, mean), std) in row.iter().zip(&self.mean).zip(&self.std) {
                let w = f64::from(*w) / f64::from(*std);
                shifted -= w * f64::from(*mean);
                weight.push(w as f32);
            }
            biases.push(shifted as f32);
        }
        LinearHead { weight, bias: biases }
    }

    /// D, values per feature.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// C, number of classes.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }

    /// Scores (C) of one raw pooled feature (D).  Callers check [`Probe::dim`] once, when they load the probe: of a
    /// feature of another length, only the values that both have are used.
    pub fn logits(&self, feature: &[f32]) -> Vec<f32> {
        debug_assert_eq!(feature.len(), self.dim());
        let standardised: Vec<f32> =
            feature.iter().zip(&self.mean).zip(&self.std).map(|((x, mean), std)| (x - mean) / std).collect();
        let rows = self.weight.chunks_exact(self.dim().max(1));
        rows.zip(&self.bias).map(|(row, bias)| bias + dot(row, &standardised)).collect()
    }

    /// Probabilities (C) of one raw pooled feature (D): the softmax of its scores.
    pub fn probabilities(&self, feature: &[f32]) -> Vec<f32> {
        softmax(&self.logits(feature))
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ProbeError`], with the file's name.
    pub fn read(path: &Path) -> Result<Self, ProbeError> {
        let name = path.display().to_string();
        let bytes = crate::regular::read(path).map_err(|cause| ProbeError::Read { path: name.clone(), cause })?;
        Self::from_bytes(&bytes, &name)
    }

    /// [`Probe::read`] on bytes in memory; `path` is used in error messages.
    ///
    /// # Errors
    /// Every [`ProbeError`] except `Read`.
    pub fn from_bytes(bytes: &[u8], path: &str) -> Result<Self, ProbeError> {
        let format = |e: safetensors::SafeTensorError| ProbeError::Format { path: path.into(), message: e.to_string() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let weight = tensor(&file, "weight", path)?;
        let &[classes, dim] = weight.shape() else {
            return Err(shape_error(path, "weight", "(C, D)", &weight));
        };
        if classes == 0 || dim == 0 {
            return Err(shape_error(path, "weight", "(C, D) with C, D >= 1", &weight));
        }
        let vector = |name, length| -> Result<Vec<f32>, ProbeError> {
            let view = tensor(&file, name, path)?;
            if view.shape() != [length] {
                return Err(shape_error(path, name, &format!("({length})"), &view));
            }
            Ok(floats(&view))
        };
        let probe = Probe {
            weight: floats(&weight),
            bias: vector("bias", classes)?,
            mean: vector("mean", dim)?,
            std: vector("std", dim)?,
            labels: labels(header.metadata().as_ref(), classes, path)?,
        };
        probe.check_values(path)?;
        Ok(probe)
    }

    /// The content of `probe.safetensors`.
    ///
    /// # Errors
    /// [`ProbeError::Value`], [`ProbeError::Shape`] or [`ProbeError::Labels`] if the fields are inconsistent: a file
    /// that cannot be read back is never written.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ProbeError> {
        let origin = "the probe";
        let (classes, dim) = (self.classes(), self.dim());
        let tensors = [
            ("weight", vec![classes, dim], &self.weight),
            ("bias", vec![classes], &self.bias),
            ("mean", vec![dim], &self.mean),
            ("std", vec![dim], &self.std),
        ];
        for (tensor, shape, values) in &tensors {
            if values.len() != shape.iter().product::<usize>() {
                return Err(ProbeError::Shape {
                    path: origin.into(),
                    tensor,
                    expected: format!("{shape:?}"),
                    found: vec![values.len()],
                });
            }
        }
        if self.labels.len() != classes {
            let found = format!("{} names", self.labels.len());
            return Err(ProbeError::Labels { path: origin.into(), expected: classes, found });
        }
        self.check_values(origin)?;
        let format =
            |e: safetensors::SafeTensorError| ProbeError::Format { path: origin.into(), message: e.to_string() };
        let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(format)?;
        let names = serde_json::Value::from(self.labels.clone()).to_string();
        let metadata = HashMap::from([("labels".to_string(), names), ("format".to_string(), "pt".to_string())]);
        safetensors::serialize(views, Some(metadata)).map_err(format)
    }

    fn check_values(&self, path: &str) -> Result<(), ProbeError> {
        let tensors = [("weight", &self.weight), ("bias", &self.bias), ("mean", &self.mean), ("std", &self.std)];
        for (tensor, values) in tensors {
            let positive = tensor == "std";
            let bad = |v: &f32| !v.is_finite() || (positive && *v <= 0.0);
            if let Some(index) = values.iter().position(bad) {
                let expected = if positive { "positive finite numbers" } else { "finite numbers" };
                return Err(ProbeError::Value { path: path.into(), tensor, expected, found: values[index], index });
            }
        }
        Ok(())
    }
}

/// exp(x_i) / sum exp(x_j), without overflow.
pub fn softmax(scores: &[f32]) -> Vec<f32> {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn tensor<'a>(file: &SafeTensors<'a>, name: &'static str, path: &str) -> Result<TensorView<'a>, ProbeError> {
    let view = file.tensor(name).map_err(|_| ProbeError::Missing { path: path.into(), tensor: name })?;
    if view.dtype() != Dtype::F32 {
        return Err(ProbeError::Type { path: path.into(), tensor: name, found: format!("{:?}", view.dtype()) });
    }
    Ok(view)
}

fn floats(view: &TensorView) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn shape_error(path: &str, tensor: &'static str, expected: &str, view: &TensorView) -> ProbeError {
    ProbeError::Shape { path: path.into(), tensor, expected: expected.into(), found: view.shape().to_vec() }
}

fn labels(metadata: Option<&HashMap<String, String>>, classes: usize, path: &str) -> Result<Vec<String>, ProbeError> {
    let wrong = |found: String| ProbeError::Labels { path: path.into(), expected: classes, found };
    let text = metadata.and_then(|m| m.get("labels")).ok_or_else(|| wrong("none".into()))?;
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| wrong(format!("unreadable text ({e})")))?;
    if names.len() != classes {
        return Err(wrong(format!("{} names", names.len())));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe {
            weight: vec![1.0, 2.0, -1.0, 0.5, 0.0, 3.0],
            bias: vec![0.1, 0.2, -0.3],
            mean: vec![0.5, -1.0],
            std: vec![2.0, 0.25],
            labels: ["shirt", "boot", "bag"].map(String::from).to_vec(),
        }
    }

    // x = np.array([1.5, -0.5]); z = (x - [0.5, -1]) / [2, 0.25]                  # [0.5, 2.0]
    // s = np.array([[1, 2], [-1, 0.5], [0, 3]]) @ z + [0.1, 0.2, -0.3]            # [4.6, 0.7, 5.7]
    // scipy.special.softmax(s)                                          # [0.24848376, 0.00502979, 0.74648646]
    #[test]
    fn scores_and_probabilities_equal_numpy() {
        let close = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6);
        assert!(close(&probe().logits(&[1.5, -0.5]), &[4.6, 0.7, 5.7]));
        assert!(close(&probe().probabilities(&[1.5, -0.5]), &[0.248_484, 0.005_030, 0.746_486]));
        assert!(close(&softmax(&[1000.0, 1000.0]), &[0.5, 0.5]));
    }

    #[test]
    fn a_folded_probe_gives_the_same_scores() {
        let (probe, x) = (probe(), [1.5, -0.5]);
        let head = probe.folded();
        let scores = head.weight.chunks_exact(2).zip(&head.bias).map(|(w, b)| dot(w, &x) + b);
        assert!(scores.zip(probe.logits(&x)).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!((head.weight.len(), head.bias.len()), (6, 3));
    }

    #[test]
    fn bytes_survive_a_round_trip() {
        let bytes = probe().to_bytes().unwrap();
        assert_eq!(Probe::from_bytes(&bytes, "probe.safetensors").unwrap(), probe());
    }

    #[test]
    fn faults_are_named() {
        let write = |edit: fn(&mut Probe)| {
            let mut probe = probe();
            edit(&mut probe);
            probe.to_bytes().unwrap_err().to_string()
        };
        assert!(write(|p| p.std[1] = 0.0).contains("`std` must hold positive finite numbers, found 0 at index 1"));
        assert!(write(|p| p.weight[2] = f32::NAN).contains("`weight` must hold finite numbers, found NaN at index 2"));
        assert!(write(|p| p.labels.truncate(2)).contains("a JSON list of 3 names, found 2 names"));
        assert!(write(|p| p.weight.truncate(4)).contains("expected `weight` of shape [3, 2], found [4]"));

        let read = |bytes: &[u8]| Probe::from_bytes(bytes, "p.safetensors").unwrap_err().to_string();
        let good = probe().to_bytes().unwrap();
        assert!(read(&good[..good.len() - 3]).starts_with("p.safetensors is not a safetensors file"));
        assert!(read(b"").starts_with("p.safetensors is not a safetensors file"));
        let data = vec![0u8; 24];
        let weight = TensorView::new(Dtype::F32, vec![3, 2], &data).unwrap();
        let bias = TensorView::new(Dtype::F32, vec![2], &data[..8]).unwrap();
        let file = |tensors: Vec<(&str, TensorView)>| safetensors::serialize(tensors, None).unwrap();
        assert!(read(&file(vec![("weight", weight.clone())])).ends_with("`bias` is missing"));
        assert!(read(&file(vec![("weight", weight), ("bias", bias)])).contains("`bias` of shape (3), found [2]"));
    }
}
