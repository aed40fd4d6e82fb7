//! The parts of the network whose gradient norms are reported separately.

/// The part of the network that a group of parameters belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Patch embedding, transformer blocks and last norm.
    Encoder,
    /// The decoder's blocks and its pixel prediction.
    Decoder,
    /// The MLP that gives queries and keys; in fine-tuning, the classification head.
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
