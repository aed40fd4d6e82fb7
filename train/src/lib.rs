//! x
pub mod data;
pub mod evaluate;
pub mod loader;
pub mod report;
pub mod views;
