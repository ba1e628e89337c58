//! Recipes may not depend on quantizers, so they list their names: the two lists must not drift apart.

#[test]
fn the_methods_of_recipes_are_auto_and_the_quantizers() {
    let methods: Vec<_> = ashlar_recipe::METHODS.iter().copied().filter(|m| *m != "auto").collect();
    assert_eq!(methods, ashlar_quantize::ids().collect::<Vec<_>>());
}
