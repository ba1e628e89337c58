//! Recipes may not depend on quantizers, so they list their names: the two lists must not drift apart.

use ashlar_quantize::{UnknownMethod, ids, quantizer};

/// A method that needs a Hessian is no choice of a recipe as long as conversion has none to give.
#[test]
fn the_methods_of_recipes_are_the_quantizers_that_need_no_hessian() -> Result<(), UnknownMethod> {
    let methods: Vec<_> = ashlar_recipe::METHODS.iter().copied().filter(|m| *m != "auto").collect();
    let mut usable = Vec::new();
    for id in ids() {
        if !quantizer(id)?.needs_hessian() {
            usable.push(id);
        }
    }
    assert_eq!(methods, usable);
    Ok(())
}
