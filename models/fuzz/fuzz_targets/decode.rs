//! Bytes -> header -> pixels -> the network's input.  For any bytes there must be no crash, no hang and bounded memory;
//! pixels exist exactly if the header is within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use macrl_bundle::config::Config;
use macrl_bundle::decode::{DecodeLimits, announced_pixels, decode};
use macrl_bundle::preprocess::Preprocess;

// decode() turns a decoder's panic into an error.  libFuzzer's panic hook would abort before that, so it is removed.
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
