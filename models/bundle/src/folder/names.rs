//! Readable class names for folders that are named by a WordNet number.

/// ImageNet's class names for the folders of Imagenette and Imagewoof, which are named by WordNet number.
const WORDNET: [(&str, &str); 20] = [
    ("n01440764", "tench"),
    ("n02102040", "English springer"),
    ("n02979186", "cassette player"),
    ("n03000684", "chain saw"),
    ("n03028079", "church"),
    ("n03394916", "French horn"),
    ("n03417042", "garbage truck"),
    ("n03425413", "gas pump"),
    ("n03445777", "golf ball"),
    ("n03888257", "parachute"),
    ("n02086240", "Shih-Tzu"),
    ("n02087394", "Rhodesian ridgeback"),
    ("n02088364", "beagle"),
    ("n02089973", "English foxhound"),
    ("n02093754", "Border terrier"),
    ("n02096294", "Australian terrier"),
    ("n02099601", "golden retriever"),
    ("n02105641", "Old English sheepdog"),
    ("n02111889", "Samoyed"),
    ("n02115641", "dingo"),
];

/// The class name of a folder: ImageNet's name for a known WordNet number, else the folder's own name.
pub fn class_name(folder: &str) -> String {
    let known = WORDNET.iter().find(|(number, _)| *number == folder);
    known.map_or(folder, |(_, word)| word).to_string()
}
