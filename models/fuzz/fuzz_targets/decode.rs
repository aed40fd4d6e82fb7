//! Bytes -> header -> pixels -> the network's input: whatever the bytes, no crash, no hang, bounded memory, and pixels
//! exactly where the header was within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use macrl_bundle::config::Config;
use macrl_bundle::decode::{DecodeLimits, announced_pixels, decode};
use macrl_bundle::preprocess::Preprocess;

// A decoder's panic is caught and becomes an error, as in the server: the fuzzer's own hook, which aborts, is taken out.
fuzz_target!(init: { let _ = std::panic::take_hook(); }, |bytes: &[u8]| {
    let limits = DecodeLimits { max_pixels: 1 << 20, max_edge: 65_535, max_alloc: 64 << 20 };
    let announced = announced_pixels(bytes);
    let Ok(image) = decode(bytes, &limits) else { return };
    let pixels = u64::from(image.width()) * u64::from(image.height());
    assert!(pixels > 0 && pixels <= limits.max_pixels, "{} x {}", image.width(), image.height());
    assert_eq!(announced, Some(pixels), "the header said otherwise");
    let preprocess = Preprocess::from_config(&Config::default());
    let fitted = preprocess.fit(&image);
    assert_eq!(fitted.width(), fitted.height());
});
