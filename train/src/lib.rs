//! x
pub mod data;
pub mod loader;
pub mod views;
