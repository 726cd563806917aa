use super::*;

fn from(variables: &[(&str, &str)]) -> Result<Settings> {
    Settings::resolve(&|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()).or_else(|| {
            // A directory without a token file.
            (name == "HOME").then(|| "/nonexistent-home".into())
        })
    })
}

#[test]
fn defaults() {
    let settings = from(&[]).unwrap();
    assert_eq!(settings.endpoint.value, PUBLIC_HUB);
    assert_eq!(settings.cache.value, Path::new("/nonexistent-home/.cache/huggingface/hub"));
    assert_eq!(settings.token_file.value, Path::new("/nonexistent-home/.cache/huggingface/token"));
    assert_eq!(settings.unusual_endpoint(), None);
    assert_eq!((settings.token.value, settings.offline.value, settings.xet.value), (None, false, true));
}

#[test]
fn the_order_of_variables_is_pythons() {
    let cache = |variables: &[(&str, &str)]| {
        let cache = from(variables).unwrap().cache;
        (cache.value.display().to_string(), cache.origin.to_string())
    };
    let of = |path: &str, origin: &str| (path.to_string(), origin.to_string());
    let all = [("HF_HUB_CACHE", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_HOME", "/c"), ("XDG_CACHE_HOME", "/d")];
    assert_eq!(cache(&all), of("/a", "HF_HUB_CACHE"));
    assert_eq!(cache(&all[1..]), of("/b", "HUGGINGFACE_HUB_CACHE"));
    assert_eq!(cache(&all[2..]), of("/c/hub", "HF_HOME"));
    assert_eq!(cache(&all[3..]), of("/d/huggingface/hub", "XDG_CACHE_HOME"));
    assert_eq!(cache(&[("HF_HOME", "~/hf"), ("HOME", "/me")]), of("/me/hf/hub", "HF_HOME"));
    let expanded = [("HF_HUB_CACHE", "$DATA/${WHO}s/$NONE"), ("DATA", "/data"), ("WHO", "me")];
    assert_eq!(cache(&expanded), of("/data/mes/$NONE", "HF_HUB_CACHE"));
}

#[test]
fn switches() {
    for (value, expected) in [("1", true), ("true", true), ("Yes", true), ("on", true), ("0", false), ("", false)] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).unwrap().offline.value, expected, "{value:?}");
        assert_eq!(from(&[("HF_HUB_DISABLE_XET", value)]).unwrap().xet.value, !expected, "{value:?}");
    }
    let offline = from(&[("TRANSFORMERS_OFFLINE", "1")]).unwrap().offline;
    assert_eq!((offline.value, offline.origin), (true, Origin::Variable("TRANSFORMERS_OFFLINE")));
    assert!(!from(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).unwrap().offline.value);
}

#[test]
fn a_token_that_nobody_gave_can_be_held_back() {
    let with = |value: &str| from(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", value)]).unwrap().token;
    assert!(with("0").value.is_some());
    assert_eq!((with("1").value, with("1").origin.to_string()), (None, "HF_HUB_DISABLE_IMPLICIT_TOKEN".into()));
}

#[test]
fn tokens() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    fs::write(home.path().join("token"), "hf_fromthefile0000000000FILE\n").unwrap();
    let other = home.path().join("other");
    fs::write(&other, "hf_fromanother0000000000OTHR").unwrap();
    let other = other.to_str().unwrap();
    let token = |variables: &[(&str, &str)]| {
        let settings = from(variables).unwrap();
        settings.describe().iter().find(|row| row.0 == "token").map(|row| (row.1.clone(), row.2.clone())).unwrap()
    };
    let file = home.path().join("token").display().to_string();
    assert_eq!(token(&[("HF_HOME", path)]), ("…FILE".into(), file));
    assert_eq!(token(&[("HF_HOME", path), ("HF_TOKEN_PATH", other)]), ("…OTHR".into(), other.to_string()));
    let all = [("HF_HOME", path), ("HF_TOKEN_PATH", other), ("HF_TOKEN", " hf_fromthevariable000000VARI ")];
    assert_eq!(token(&all), ("…VARI".into(), "HF_TOKEN".into()));
    assert!(!format!("{:?}", from(&all).unwrap()).contains("hf_"));
    let message = from(&[("HF_TOKEN", "hf_a b")]).unwrap_err().to_string();
    assert!(message.contains("HF_TOKEN") && !message.contains("hf_a"), "{message}");
}

#[test]
fn endpoints() {
    for (text, expected) in [
        ("https://hub.example.com/", "https://hub.example.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://example.com/hub/", "https://example.com/hub"),
    ] {
        let settings = from(&[("HF_ENDPOINT", text)]).unwrap();
        assert_eq!(settings.unusual_endpoint(), Some(expected));
        assert_eq!(settings.endpoint.origin, Origin::Variable("HF_ENDPOINT"));
    }
    for text in ["huggingface.co", "ftp://x", "https://me:secret@x", "https://x?token=secret", "https://x#a", "/x"] {
        let message = from(&[("HF_ENDPOINT", text)]).unwrap_err().to_string();
        assert!(message.contains("HF_ENDPOINT") && !message.contains("secret"), "{message}");
    }
    let loopback = |text: &str| is_loopback(&Url::parse(text).unwrap());
    assert!(loopback("http://localhost:1") && loopback("http://127.0.0.9") && loopback("http://[::1]:2"));
    assert!(
        !loopback("http://example.com") && !loopback("http://127.0.0.1.example.com") && !loopback("http://10.0.0.1")
    );
}
