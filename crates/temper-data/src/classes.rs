//! Transformers' classes of tokenizers that are made anew from the vocabulary alone, and may give other tokens than `tokenizer.json`.

use serde_json::Value;

/// What such a class knows beside its files, as in Transformers 5.23. None of them has segments.
pub struct Class {
    /// Its name, without `Fast`.
    name: &'static str,
    /// The models whose tokenizers are of this class where nothing else is said.
    model_types: &'static [&'static str],
    /// Tokens that have a part, by the key of that part.
    pub tokens: &'static [(&'static str, &'static str)],
    /// Whether rows are padded on the left.
    pub pads_left: bool,
}

const ENCODER: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("sep_token", "</s>"),
    ("cls_token", "<s>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];

const CLASSES: [Class; 6] = [
    Class {
        name: "LlamaTokenizer",
        model_types: &[],
        tokens: &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        pads_left: true,
    },
    Class {
        name: "GPT2Tokenizer",
        model_types: &["gpt2"],
        tokens: &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")],
        pads_left: false,
    },
    Class {
        name: "Qwen2Tokenizer",
        model_types: &["qwen2", "qwen3"],
        tokens: &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        pads_left: false,
    },
    Class {
        name: "GemmaTokenizer",
        model_types: &["gemma3_text"],
        tokens: &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        pads_left: true,
    },
    Class { name: "RobertaTokenizer", model_types: &["roberta"], tokens: &ENCODER, pads_left: false },
    Class { name: "XLMRobertaTokenizer", model_types: &["xlm-roberta"], tokens: &ENCODER, pads_left: false },
];

impl Class {
    /// The class that `tokenizer_class` names in `tokenizer_config.json`.
    #[must_use]
    pub fn named(tokenizer_class: &Value) -> Option<&'static Self> {
        let name = tokenizer_class.as_str()?;
        CLASSES.iter().find(|class| class.name == name.strip_suffix("Fast").unwrap_or(name))
    }

    /// The class of a model's tokenizer that names none.
    #[must_use]
    pub fn of_model(model_type: &str) -> Option<&'static Self> {
        CLASSES.iter().find(|class| class.model_types.contains(&model_type))
    }
}
