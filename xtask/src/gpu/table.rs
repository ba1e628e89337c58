//! The report's tables, as Markdown: what was measured, and what share of the machine that is.

use ashlar_cuda::bench::{Attended, Measured, Product, Shared};

/// What products are compared with: PyTorch's bf16 rate for rows, n, k.
pub type Rate = ([usize; 3], f64);

/// A model whose layers were run as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    pub format: String,
    /// Tokens per second.
    pub prefill: f64,
    /// Tokens per second, and bytes of weights that they read.
    pub decode: f64,
    pub read: f64,
}

/// Products of few rows: how fast their weights are read, beside copying.
pub fn decoding(products: &[Product], copy: f64) -> String {
    let few = products.iter().filter(|p| p.rows <= 8);
    let row = |p: &Product| {
        let rate = p.read_rate();
        let shape = format!("{} × {}", p.n, p.k);
        vec![p.format.clone(), shape, p.rows.to_string(), micro(p.seconds), giga(rate), percent(rate / copy)]
    };
    markdown(&["format", "weight", "rows", "µs", "GB/s", "of copying"], few.map(row))
}

/// Products of many rows: how fast they multiply, beside PyTorch in bf16.
pub fn prefill(products: &[Product], torch: &[Rate]) -> String {
    let many = products.iter().filter(|p| p.rows > 8);
    let row = |p: &Product| {
        let theirs = torch.iter().find(|(shape, _)| *shape == [p.rows, p.n, p.k]);
        let share = theirs.map_or_else(|| "no PyTorch".to_owned(), |(_, rate)| percent(p.flops() / rate));
        let shape = format!("{} × {}", p.n, p.k);
        vec![p.format.clone(), shape, p.rows.to_string(), micro(p.seconds), tera(p.flops()), share]
    };
    markdown(&["format", "weight", "rows", "µs", "Tflop/s", "of PyTorch's bf16"], many.map(row))
}

/// Attention: how fast keys and values are read at decoding; how long a chunk takes.
pub fn attention(all: &[Attended], copy: f64) -> String {
    let row = |a: &Attended| {
        let rate = a.bytes as f64 / a.seconds;
        let read = if a.rows == 1 { [giga(rate), percent(rate / copy)] } else { [String::new(), String::new()] };
        let head =
            [a.kv.name().to_owned(), a.heads.to_string(), a.rows.to_string(), a.depth.to_string(), micro(a.seconds)];
        head.into_iter().chain(read).collect()
    };
    markdown(&["keys and values", "key heads", "rows", "positions", "µs", "GB/s", "of copying"], all.iter().map(row))
}

/// Everything else: how fast it reads and writes, beside copying; of products of many rows the rate beside the best of PyTorch's.
pub fn others(all: &[Measured], copy: f64, torch: &[Rate]) -> String {
    let best = torch.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let row = |m: &Measured| {
        let rate = m.bytes / m.seconds;
        let flops = m.operations / m.seconds;
        let multiplied = match (m.rows > 8 && flops > 0.0, best > 0.0) {
            (false, _) => [String::new(), String::new()],
            (true, false) => [tera(flops), "no PyTorch".to_owned()],
            (true, true) => [tera(flops), percent(flops / best)],
        };
        let head = [m.what.to_owned(), m.shape.clone(), m.rows.to_string(), micro(m.seconds), giga(rate)];
        head.into_iter().chain([percent(rate / copy)]).chain(multiplied).collect()
    };
    let head = ["op", "shape", "rows", "µs", "GB/s", "of copying", "Tflop/s", "of PyTorch's bf16"];
    markdown(&head, all.iter().map(row))
}

/// Layers of experts that device and host share: microseconds of each, and how fast what is copied for one crosses.
pub fn shared(all: &[Shared]) -> String {
    let row = |s: &Shared| {
        let rate = if s.copied > 0.0 { giga(s.copied / s.seconds) } else { String::new() };
        vec![s.what.to_owned(), s.shape.clone(), micro(s.seconds), rate]
    };
    markdown(&["way", "layer", "µs per layer", "copied, GB/s"], all.iter().map(row))
}

/// Layers as a whole.
pub fn whole(all: &[Whole], copy: f64) -> String {
    let row = |w: &Whole| {
        vec![
            w.format.clone(),
            format!("{:.0}", w.prefill),
            format!("{:.1}", w.decode),
            giga(w.read),
            percent(w.read / copy),
        ]
    };
    markdown(
        &["format", "prefill, tokens/s", "decoding, tokens/s", "weights read, GB/s", "of copying"],
        all.iter().map(row),
    )
}

/// A table of these columns.
pub fn markdown(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn micro(seconds: f64) -> String {
    format!("{:.1}", 1e6 * seconds)
}

fn giga(rate: f64) -> String {
    format!("{:.1}", rate / 1e9)
}

fn tera(rate: f64) -> String {
    format!("{:.1}", rate / 1e12)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(rows: usize, seconds: f64) -> Product {
        Product { format: "k4".into(), rows, n: 8192, k: 1000, bytes: 4_000_000, seconds }
    }

    #[test]
    fn shares_are_of_what_stands_beside_them() {
        let all = [product(1, 2e-6), product(2048, 1e-3)];
        // 4 MB in 2 µs are 2 TB/s, half of 4 TB/s.
        assert_eq!(
            decoding(&all, 4e12),
            "| format | weight | rows | µs | GB/s | of copying |\n|---|---|---|---|---|---|\n| k4 | 8192 × 1000 | 1 | 2.0 | 2000.0 | 50 % |\n"
        );
        // 2 · 2048 · 8192 · 1000 operations in 1 ms.
        let torch = [([2048, 8192, 1000], 67.108_864e12)];
        let table = prefill(&all, &torch);
        assert!(table.ends_with("| k4 | 8192 × 1000 | 2048 | 1000.0 | 33.6 | 50 % |\n"), "{table}");
        assert!(prefill(&all, &[]).contains("no PyTorch"));
    }

    #[test]
    fn other_ops_are_beside_copying_and_products_of_many_rows_beside_pytorch() {
        let of = |rows, operations| Measured {
            what: "experts",
            shape: "k4".into(),
            rows,
            bytes: 1e6,
            operations,
            seconds: 1e-6,
        };
        let torch = [([1, 2, 3], 4e12), ([1, 2, 4], 8e12)];
        let table = others(&[of(1, 5.0), of(2048, 2e6)], 2e12, &torch);
        assert!(table.contains("| experts | k4 | 1 | 1.0 | 1000.0 | 50 % |  |  |"), "{table}");
        assert!(table.contains("| 2048 | 1.0 | 1000.0 | 50 % | 2.0 | 25 % |"), "{table}");
        assert!(others(&[of(9, 1.0)], 2e12, &[]).contains("no PyTorch"));
    }

    #[test]
    fn what_is_copied_for_a_layer_has_a_rate() {
        let of = |copied| Shared { what: "slots", shape: "k4".into(), copied, seconds: 4e-5 };
        let table = shared(&[of(0.0), of(4e5)]);
        assert!(table.contains("| slots | k4 | 40.0 |  |") && table.contains("| 40.0 | 10.0 |"), "{table}");
    }

    #[test]
    fn only_decoding_has_a_share_of_copying() {
        let one = Attended {
            kv: ashlar_cuda::bench::KvFormat::F16,
            heads: 8,
            rows: 1,
            depth: 16384,
            bytes: 64 << 20,
            seconds: 1e-4,
        };
        let table = attention(&[one.clone(), Attended { rows: 2048, ..one }], 1.342_177_28e12);
        assert!(table.contains("| f16 | 8 | 1 | 16384 | 100.0 | 671.1 | 50 % |"), "{table}");
        assert!(table.contains("| 2048 | 16384 | 100.0 |  |  |"), "{table}");
        let layers = Whole { format: "k4".into(), prefill: 1234.5, decode: 99.94, read: 1e12 };
        assert!(whole(&[layers], 2e12).contains("| k4 | 1234 | 99.9 | 1000.0 | 50 % |"));
    }
}
