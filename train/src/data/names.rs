//! Class names of data sets whose files do not carry them.

/// Class names of CIFAR-10 in label order.
pub const CIFAR_10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Class names of Fashion-MNIST in label order (arXiv 1708.07747, table 2).
pub const FASHION_MNIST: [&str; 10] =
    ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Owned copies of a list of names.
pub fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}
