#![allow(warnings)]
use ashlar_convert::*;
use ashlar_recipe::*;
use ashlar_source::Checkpoint;
use std::path::Path;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let c = Checkpoint::open(Path::new(&a[1])).unwrap();
    let r = Recipe::parse(preset(&a[3]).unwrap(), "p").unwrap();
    let m = ashlar_arch::model_spec(c.config()).unwrap();
    let ch = r.choose(&m, &c).unwrap();
    let p = plan(&m, &c, &ch, Origin::checkpoint(&c, emit(&ch)), 4 << 30).unwrap();
    let o = Options { threads: a.get(4).map(|t| t.parse().unwrap()), ..Options::default() };
    let s = convert(&p, &c, Path::new(&a[2]), &o, &ashlar_tensor::Silent).unwrap();
    eprintln!("{:.2}s", s.seconds);
}
