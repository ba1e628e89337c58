use super::*;
use crate::Knowledge;
use ashlar_arch::ModelSpec;
use std::path::Path;

fn origin(source: &str, tokens: u64) -> StatsOrigin {
    let texts = vec![Text { name: format!("{tokens}.txt"), blake3: "00".into() }];
    StatsOrigin { source: source.into(), tokens, ctx: 8, texts }
}

fn moments(tensor: &str, sums: &[f32], tokens: i64) -> [Array; 2] {
    let array = |kind: &str, shape, data| Array { name: format!("{kind}.{tensor}"), shape: vec![shape], data };
    [array("moments", sums.len(), Data::F32(sums.to_vec())), array("tokens", 1, Data::I64(vec![tokens]))]
}

fn refused(path: &Path) -> String {
    StatsFile::open(path).map(drop).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("s");
    let mut arrays = moments("a.weight", &[1.0, 2.5], 7).to_vec();
    arrays.push(Array { name: "routing.0".into(), shape: vec![2, 2], data: Data::F64(vec![3.0, 4.0, 0.5, 6.5]) });
    arrays.push(Array { name: "coactivation.0".into(), shape: vec![2, 2], data: Data::I64(vec![3, 1, 1, 4]) });
    write(&path, &origin("me", 9), &arrays)?;
    let file = StatsFile::open(&path)?;
    assert_eq!(file.origin(), &origin("me", 9));
    assert_eq!(file.moments("a.weight")?, Some((vec![1.0, 2.5], 7)));
    assert_eq!(file.moments("b.weight")?, None);
    assert_eq!(file.routing(0)?, Some(Routing { tokens: vec![3, 4], weights: vec![0.5, 6.5] }));
    assert_eq!(file.coactivation(0)?, Some(vec![3, 1, 1, 4]));
    assert_eq!(file.routing(1)?, None);
    assert!(file.check_model("me").is_ok());
    let error = file.check_model("you").unwrap_err().to_string();
    assert!(error.contains("the model me") && error.contains("is you"), "{error}");
    Ok(())
}

#[test]
fn merged_sums_add_up_and_absent_arrays_count_as_nothing() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    write(&at("a"), &origin("me", 9), &[moments("x", &[1.0, 2.0], 7), moments("y", &[5.0], 1)].concat())?;
    write(&at("b"), &origin("me", 1), &moments("x", &[0.5, 0.25], 3))?;
    let files = [StatsFile::open(&at("a"))?, StatsFile::open(&at("b"))?];
    merge(&files, &merge_origins(&files)?, &at("ab"))?;
    let file = StatsFile::open(&at("ab"))?;
    assert_eq!(file.moments("x")?, Some((vec![1.5, 2.25], 10)));
    assert_eq!(file.moments("y")?, Some((vec![5.0], 1)));
    assert_eq!((file.origin().tokens, file.origin().texts.len()), (10, 2));
    write(&at("c"), &origin("me", 1), &moments("x", &[1.0], 1))?;
    let files = [StatsFile::open(&at("a"))?, StatsFile::open(&at("c"))?];
    let error = merge(&files, &origin("me", 1), &at("ac")).unwrap_err().to_string();
    assert!(error.contains("moments.x") && !at("ac").exists(), "{error}");
    Ok(())
}

#[test]
fn hostile_files_are_refused_by_name() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("s");
    let array = |name: &str, shape: &[usize], data| Array { name: name.into(), shape: shape.to_vec(), data };
    let cases = [
        (array("moments.x", &[1], Data::F32(vec![1.0])), "has no `tokens.x`"),
        (array("moments.x", &[1, 1], Data::F32(vec![1.0])), "shape [1, 1]"),
        (array("tokens.x", &[1], Data::F32(vec![1.0])), "type F32"),
        (array("routing.0", &[3, 1], Data::F64(vec![1.0; 3])), "shape [3, 1]"),
        (array("coactivation.0", &[2, 1], Data::I64(vec![1; 2])), "shape [2, 1]"),
        (array("hessian.x", &[1], Data::F32(vec![1.0])), "has no `tokens.x`"),
        (array("hessian.x", &[2], Data::F32(vec![1.0; 2])), "shape [2]"),
        (array("hessian_experts.0", &[4], Data::F32(vec![1.0; 4])), "shape [4]"),
        (array("hessians.x", &[1], Data::F32(vec![1.0])), "is not known"),
    ];
    for (bad, says) in cases {
        write(&path, &origin("me", 1), &[bad])?;
        let error = refused(&path);
        assert!(error.contains(says), "{error}");
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        write(&path, &origin("me", 1), &moments("x", &[bad], 1))?;
        assert!(StatsFile::open(&path)?.moments("x").is_err(), "{bad}");
    }
    write(&path, &origin("me", 1), &moments("x", &[1.0], -1))?;
    assert!(StatsFile::open(&path)?.moments("x").is_err());
    let bytes = std::fs::read(&path)?;
    std::fs::write(&path, bytes.get(..bytes.len() - 1).ok_or("short")?)?;
    assert!(refused(&path).contains('s'));
    Ok(())
}

/// The bundled MoE model, with statistics of the down projections of its first layer alone.
fn moe() -> Result<ModelSpec, Box<dyn std::error::Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    Ok(ashlar_arch::model_spec(&serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?)?)
}

fn down(expert: usize) -> String {
    format!("model.layers.0.mlp.experts.{expert}.down_proj.weight")
}

#[test]
fn experts_shrink_to_their_layer_and_unseen_ones_take_its_mean() -> Result<(), Box<dyn std::error::Error>> {
    let (model, dir) = (moe()?, tempfile::tempdir()?);
    let path = dir.path().join("s");
    let k = 128;
    // Expert 0 saw 2048 tokens, of which only column 0 fired; expert 1 as many with column 1.
    let one = |column: usize, value: f32| (0..k).map(|c| if c == column { value } else { 0.0 }).collect::<Vec<_>>();
    let arrays = [moments(&down(0), &one(0, 2048.0), 2048), moments(&down(1), &one(1, 2048.0), 2048)].concat();
    write(&path, &origin("me", 4096), &arrays)?;
    let importance = Importance::open(&path, &model, "me")?;
    // The layer's mean is 1/2 in both columns; halfway between it and the expert's own (1, 0) lies (3/4, 1/4).
    let of = |e: usize| importance.of(&down(e));
    let own = of(0)?.ok_or("expert 0")?;
    assert_eq!((own.first(), own.get(1)), (Some(&96.0), Some(&32.0)), "scaled to a mean of 1");
    let unseen = of(7)?.ok_or("expert 7")?;
    assert_eq!((unseen.first(), unseen.get(1)), (Some(&64.0), Some(&64.0)));
    assert!(unseen.get(2).is_some_and(|least| *least > 0.0 && *least < 0.01));
    assert!(importance.knows(&down(7)));
    let gate = "model.layers.0.mlp.experts.0.gate_proj.weight";
    assert!(importance.of(gate)?.is_none() && !importance.knows(gate));
    Ok(())
}

#[test]
fn statistics_of_another_shape_or_model_are_refused() -> Result<(), Box<dyn std::error::Error>> {
    let (model, dir) = (moe()?, tempfile::tempdir()?);
    let path = dir.path().join("s");
    write(&path, &origin("me", 1), &moments(&down(0), &[1.0; 3], 1))?;
    let error = Importance::open(&path, &model, "me").unwrap_err().to_string();
    assert!(error.contains("has 3 columns, the weight has 128"), "{error}");
    let error = Importance::open(&path, &model, "other").unwrap_err().to_string();
    assert!(error.contains("the model me, but this one is other"), "{error}");
    Ok(())
}
