//! What caches hold as bytes and back: a sequence goes on in another slot as it would have in its own.

use super::{Suite, attention, compress};

pub fn cases(suite: &mut Suite<'_>) {
    // A device that cannot says so, and nobody asks it.
    if (suite.make)().saved_as().is_none() {
        return;
    }
    attention::saved(suite);
    compress::saved(suite);
}
