//! Packs of earlier versions stay readable.
