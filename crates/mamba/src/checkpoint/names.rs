//! Tensor names: every scheme to the official one, which is the canonical one here.

/// The canonical name of a tensor in a checkpoint.
///
/// | scheme | embedding | rest |
/// |---|---|---|
/// | official (`MambaLMHeadModel`) | `backbone.embedding.weight` | `backbone.layers.N.…`, `backbone.norm_f.…`, `lm_head.…` |
/// | Hugging Face (`MambaForCausalLM`) | `backbone.embeddings.weight` | the same |
/// | either's bare backbone (`MixerModel`, `MambaModel`) | `embedding(s).weight` | without `backbone.` |
#[must_use]
pub fn canonical(name: &str) -> String {
    let bare = name.strip_prefix("backbone.").unwrap_or(name);
    match bare {
        "embedding.weight" | "embeddings.weight" => "backbone.embedding.weight".into(),
        _ if bare.starts_with("layers.") || bare.starts_with("norm_f.") => format!("backbone.{bare}"),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn all_schemes_meet_in_the_official_one() {
        for name in [
            "backbone.embedding.weight",
            "backbone.embeddings.weight",
            "embedding.weight",
            "embeddings.weight",
        ] {
            assert_eq!(canonical(name), "backbone.embedding.weight");
        }
        for name in ["backbone.layers.3.mixer.A_log", "layers.3.mixer.A_log"] {
            assert_eq!(canonical(name), "backbone.layers.3.mixer.A_log");
        }
        assert_eq!(canonical("norm_f.weight"), "backbone.norm_f.weight");
        assert_eq!(canonical("lm_head.weight"), "lm_head.weight");
        assert_eq!(canonical("something.else"), "something.else");
    }
}
