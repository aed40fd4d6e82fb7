//! Recognises the names of splits in their usual spellings.
//!
//! A name is divided into words at every non-letter, between letters and digits, and where an upper-case letter follows
//! a lower-case one.  Numbers and filler words ("set", "images", "of") are ignored.  So `Train`, `train_set`,
//! `TestImages`, `val2017` and `test-00000-of-00001` are all recognised.

/// A part of a data set, with the words that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// train, training, trainval
    Train,
    /// val, valid, validation, dev, eval, evaluation
    Validation,
    /// test, testing, holdout
    Test,
}

const WORDS: [(&str, Split); 12] = [
    ("train", Split::Train),
    ("training", Split::Train),
    ("trainval", Split::Train),
    ("val", Split::Validation),
    ("valid", Split::Validation),
    ("validation", Split::Validation),
    ("dev", Split::Validation),
    ("eval", Split::Validation),
    ("evaluation", Split::Validation),
    ("test", Split::Test),
    ("testing", Split::Test),
    ("holdout", Split::Test),
];
/// Filler words that may stand beside a split's name.
const FILLERS: [&str; 16] = [
    "set", "sets", "split", "splits", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures",
    "folder", "of", "jpg", "png",
];

impl Split {
    /// The split that a name stands for; `None` if the name contains anything else.
    ///
    /// ```
    /// use macrl_bundle::folder::Split;
    ///
    /// assert_eq!(Split::of_name("TestImages"), Some(Split::Test));
    /// assert_eq!(Split::of_name("val2017"), Some(Split::Validation));
    /// assert_eq!(Split::of_name("train station"), None);
    /// ```
    pub fn of_name(name: &str) -> Option<Split> {
        let words = words(name);
        let significant: Vec<&String> = words.iter().filter(|w| !is_filler(w)).collect();
        match significant[..] {
            [word] => of_word(word),
            // "train_val", as in VOC, is training data.
            [first, second] => {
                let both = (of_word(first)?, of_word(second)?);
                (both == (Split::Train, Split::Validation)).then_some(Split::Train)
            }
            _ => None,
        }
    }

    /// The split that a name starts or ends with, and the rest of the name: `seg_train` gives (training, "seg").
    pub fn within(name: &str) -> Option<(Split, String)> {
        let words: Vec<String> = words(name).into_iter().filter(|w| !FILLERS.contains(&w.as_str())).collect();
        let (last, front) = words.split_last()?;
        if let Some(split) = of_word(last) {
            return Some((split, front.join(" ")));
        }
        let (first, rest) = words.split_first()?;
        Some((of_word(first)?, rest.join(" ")))
    }

    /// The split that a file or folder name mentions between dashes, dots and the like: `cifar10-test`,
    /// `partial-train-00000-of-00002`.  If a name mentions two splits, the held-out one counts.
    pub fn mentioned(name: &str) -> Option<Split> {
        let parts = name.split(|c: char| !c.is_alphanumeric());
        Split::of_name(name).or_else(|| parts.filter_map(Split::of_name).max())
    }

    /// Name of the split in messages.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

fn is_filler(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || FILLERS.contains(&word)
}

/// The split that one word stands for; a filler may be attached (`trainset`).
fn of_word(word: &str) -> Option<Split> {
    let fits = |known: &str| word.strip_prefix(known).is_some_and(|rest| rest.is_empty() || FILLERS.contains(&rest));
    WORDS.iter().find(|(known, _)| fits(known)).map(|(_, split)| *split)
}

/// The words of a name in lower case; runs of digits are separate words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let kind = |c: char| (c.is_alphabetic(), c.is_numeric());
        if kind(c) != kind(before) || (before.is_lowercase() && c.is_uppercase()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}
