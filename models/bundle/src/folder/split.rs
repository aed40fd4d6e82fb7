//! Names of splits in their usual spellings.
//!
//! A name is cut into words at everything that is no letter, between letters and digits, and where a capital follows a
//! small letter.  Numbers and words that say nothing ("set", "images", "of") do not count, so that `Train`,
//! `train_set`, `TestImages`, `val2017` and `test-00000-of-00001` are understood.

/// A part of a data set.
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
/// Words beside a split's name that say nothing about it.
const FILLERS: [&str; 16] = [
    "set", "sets", "split", "splits", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures",
    "folder", "of", "jpg", "png",
];

impl Split {
    /// From a name that says a split and nothing else.
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
        let telling: Vec<&String> = words.iter().filter(|w| !says_nothing(w)).collect();
        match telling[..] {
            [word] => of_word(word),
            // VOC's and others' "train_val" is for training.
            [first, second] => {
                let both = (of_word(first)?, of_word(second)?);
                (both == (Split::Train, Split::Validation)).then_some(Split::Train)
            }
            _ => None,
        }
    }

    /// From a name that ends or begins with a split, and the rest of the name: `seg_train` is (training, "seg").
    pub fn within(name: &str) -> Option<(Split, String)> {
        let words: Vec<String> = words(name).into_iter().filter(|w| !FILLERS.contains(&w.as_str())).collect();
        let (last, front) = words.split_last()?;
        if let Some(split) = of_word(last) {
            return Some((split, front.join(" ")));
        }
        let (first, rest) = words.split_first()?;
        Some((of_word(first)?, rest.join(" ")))
    }

    /// From any part of a file's or a folder's name between dashes, dots and the like: `cifar10-test`,
    /// `partial-train-00000-of-00002`.  Of two different splits in one name the one that is not for training counts.
    pub fn mentioned(name: &str) -> Option<Split> {
        let parts = name.split(|c: char| !c.is_alphanumeric());
        Split::of_name(name).or_else(|| parts.filter_map(Split::of_name).max())
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

fn says_nothing(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || FILLERS.contains(&word)
}

/// One word, perhaps with a filler written together with it (`trainset`).
fn of_word(word: &str) -> Option<Split> {
    let fits = |known: &str| word.strip_prefix(known).is_some_and(|rest| rest.is_empty() || FILLERS.contains(&rest));
    WORDS.iter().find(|(known, _)| fits(known)).map(|(_, split)| *split)
}

/// Lower-case words; digits are words of their own.
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
