//! The loss as a list of named terms.
//!
//! A [`Term`] says which numbers a step measures of one term and how they are shown.  The training loop, metrics.jsonl,
//! TensorBoard, `macrl-train replay`, the report and the GPU's ring of numbers all go through this list, and none of them
//! knows a term by its name.  The terms of pretraining stand in [`crate::method::TERMS`].

use candle_core::Tensor;

/// One number that a step measures of a term.
#[derive(Debug, PartialEq)]
pub struct Number {
    /// Key in metrics.jsonl; TensorBoard shows it as `step/KEY`.
    pub key: &'static str,
    /// Name of the curve in the report.
    pub curve: &'static str,
    /// Name in the output of `macrl-train replay`.
    pub description: &'static str,
}

/// Numbers that share one chart of the report.
#[derive(Debug, PartialEq)]
pub struct Chart {
    /// Heading of the chart.
    pub title: &'static str,
    /// One curve for each number.
    pub numbers: &'static [Number],
}

/// One named term of the loss.
#[derive(Debug, PartialEq)]
pub struct Term {
    /// Name in the progress line.
    pub name: &'static str,
    /// The numbers that a step measures, by chart.  The first chart holds the loss itself, which the progress line shows too.
    pub charts: &'static [Chart],
}

impl Term {
    /// All numbers, in the order in which the term's operator gives them.
    pub fn numbers(&self) -> impl Iterator<Item = &'static Number> {
        self.charts.iter().flat_map(|chart| chart.numbers)
    }

    /// How many numbers a step measures.
    pub fn count(&self) -> usize {
        self.numbers().count()
    }
}

/// One computed term, on the step's device.
pub struct Computed {
    /// The term that was computed.
    pub term: &'static Term,
    /// Weight times loss, a scalar through which gradients pass.
    pub weighted: Tensor,
    /// ([`Term::count`]): what is measured; gradients do not pass through it.
    pub numbers: Tensor,
}

/// The losses of one batch, or of one part of it.
pub struct Losses {
    /// Sum of the weighted terms, a scalar through which gradients pass.
    pub total: Tensor,
    /// The numbers of each term.
    pub terms: Vec<(&'static Term, Tensor)>,
    /// (B, C) keys that enter the bank after the optimiser's step.
    pub keys: Option<Tensor>,
}

impl Losses {
    /// Adds up the terms in their order; `None` where there is no term.
    ///
    /// # Errors
    /// Terms on different devices.
    pub fn sum(terms: Vec<Computed>, keys: Option<Tensor>) -> candle_core::Result<Option<Self>> {
        let mut total: Option<Tensor> = None;
        let mut numbers = Vec::new();
        for Computed { term, weighted, numbers: of_term } in terms {
            total = Some(match total {
                Some(sum) => (sum + weighted)?,
                None => weighted,
            });
            numbers.push((term, of_term));
        }
        Ok(total.map(|total| Losses { total, terms: numbers, keys }))
    }
}

/// The numbers of one term, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct TermNumbers {
    /// The term that the numbers belong to.
    pub term: &'static Term,
    /// In the order of [`Term::numbers`].
    pub values: Vec<f32>,
}

impl TermNumbers {
    /// Each number with what it is.
    pub fn named(&self) -> impl Iterator<Item = (&'static Number, f32)> {
        self.term.numbers().zip(self.values.iter().copied())
    }

    /// The value of a key, where the term has it.
    pub fn get(&self, key: &str) -> Option<f32> {
        self.named().find(|(number, _)| number.key == key).map(|(_, value)| value)
    }

    /// The loss for the progress line: `NAME VALUE/VALUE`.
    pub fn in_words(&self) -> String {
        let shown = self.term.charts.first().map_or(0, |chart| chart.numbers.len());
        let values: Vec<String> = self.values.iter().take(shown).map(|value| format!("{value:.3}")).collect();
        format!("{} {}", self.term.name, values.join("/"))
    }
}
