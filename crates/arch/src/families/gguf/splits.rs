//! How text is split before byte-pair merges: `tokenizer.ggml.pre`. The patterns are those of the models' own
//! tokenizer.json.

/// A way to split.
pub struct Split {
    /// Values of `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    /// Patterns, applied one after another, each isolating what it matches.
    pub patterns: &'static [&'static str],
    /// Whether a word that is a token as a whole is not built by merges.
    pub ignore_merges: bool,
    /// Whether a beginning-of-text token is added where the file does not say.
    pub begin: bool,
    /// Whether text is normalized to NFC.
    pub nfc: bool,
}

const PLAIN: Split = Split { names: &[], patterns: &[], ignore_merges: false, begin: false, nfc: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const DEEPSEEK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// All of them.
pub const SPLITS: &[Split] = &[
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[CL100K],
        ignore_merges: true,
        begin: true,
        ..PLAIN
    },
    Split { names: &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], patterns: &[CL100K], ..PLAIN },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "solar-open"],
        patterns: &[QWEN],
        nfc: true,
        ..PLAIN
    },
    Split { names: &["gpt-4o", "llama4"], patterns: &[O200K], ..PLAIN },
    Split { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, begin: true, ..PLAIN },
    Split {
        names: &["deepseek-v3", "hunyuan-dense"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK],
        ..PLAIN
    },
    Split {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ..PLAIN
    },
    Split { names: &["gpt-2", "phi-2", "mpt", "olmo", "mellum", "jais", "trillion"], patterns: &[GPT2], ..PLAIN },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
];

/// The way of that name.
pub fn split(name: &str) -> Option<&'static Split> {
    SPLITS.iter().find(|s| s.names.contains(&name))
}
