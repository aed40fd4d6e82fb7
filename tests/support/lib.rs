//! Whole-system tests live beside this file; there is no code of its own here.
