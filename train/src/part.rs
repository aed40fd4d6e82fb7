//! The parts of the network whose gradients are reported apart.

/// The part of the network that a group of parameters belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Patch embedding, transformer blocks and last norm.
    Encoder,
    /// Predicts the pixels of removed patches.
    Decoder,
    /// Maps pooled features to keys and queries; in fine-tuning, the classification head.
    Projector,
}

impl Part {
    /// All parts, in the order of their numbers.
    pub const ALL: [Part; 3] = [Part::Encoder, Part::Decoder, Part::Projector];

    /// Lower-case name, as in the key `grad_norm_encoder` of metrics.jsonl.
    pub fn name(self) -> &'static str {
        match self {
            Part::Encoder => "encoder",
            Part::Decoder => "decoder",
            Part::Projector => "projector",
        }
    }
}
