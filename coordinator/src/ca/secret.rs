//! The Secret in which the authorities are kept, and the ConfigMap in which everybody finds them.
//!
//! | key of the Secret | stage | what it is |
//! |---|---|---|
//! | `ca.crt`, `ca.key` | any | the authority that signs |
//! | `ca-next.crt`, `ca-next.key`, `since` | announced | the authority that will sign |
//! | `ca-old.crt`, `since` | retiring | the authority that signed before |

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ObjectMeta;

use super::authority::{Anchor, Authority};
use super::state::{Stage, State};
use super::{BUNDLE_NAME, CERTIFICATE_KEY, CaError};

const KEY: &str = "ca.key";
const NEXT_CERTIFICATE: &str = "ca-next.crt";
const NEXT_KEY: &str = "ca-next.key";
const OLD_CERTIFICATE: &str = "ca-old.crt";
const SINCE: &str = "since";

/// A person's wish on the Secret: rotate the authority now. Removed when the rotation begins.
pub const ROTATE_ANNOTATION: &str = "somersault.novasphere.dev/rotate-ca";
/// On the ConfigMap: until when the authority that signs is good, for people and for `kubectl somersault check`.
const NOT_AFTER_ANNOTATION: &str = "somersault.novasphere.dev/ca-not-after";
/// On the ConfigMap: how far a rotation has come.
const STAGE_ANNOTATION: &str = "somersault.novasphere.dev/ca-stage";

/// Reads the Secret.
pub fn read(secret: &Secret) -> Result<State, CaError> {
    let secret_name = secret.metadata.name.clone().unwrap_or_default();
    let wrong = |key, why: String| CaError::Malformed { secret: secret_name.clone(), key, why };
    let get = |key: &'static str| -> Result<Option<&str>, CaError> {
        let Some(value) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
        std::str::from_utf8(&value.0).map(Some).map_err(|_| wrong(key, "it is no text".to_owned()))
    };
    let must = |key: &'static str| get(key)?.ok_or_else(|| wrong(key, "it is missing".to_owned()));
    let anchor = |key: &'static str| Anchor::parse(must(key)?).map_err(|why| wrong(key, why));
    let authority = |certificate: &'static str, key: &'static str| {
        Authority::parse(anchor(certificate)?, must(key)?).map_err(|why| wrong(key, why))
    };
    let since =
        || must(SINCE)?.parse::<Timestamp>().map_err(|error| wrong(SINCE, format!("it is no time: {error}")));

    let signing = authority(CERTIFICATE_KEY, KEY)?;
    let stage = match (get(NEXT_CERTIFICATE)?, get(OLD_CERTIFICATE)?) {
        (None, None) => Stage::Stable,
        (Some(_), None) => Stage::Announced { next: authority(NEXT_CERTIFICATE, NEXT_KEY)?, since: since()? },
        (None, Some(_)) => Stage::Retiring { old: anchor(OLD_CERTIFICATE)?, since: since()? },
        (Some(_), Some(_)) => {
            return Err(wrong(OLD_CERTIFICATE, format!("it must not stand beside {NEXT_CERTIFICATE}")));
        }
    };
    let annotations = secret.metadata.annotations.as_ref();
    let asked = annotations.is_some_and(|annotations| annotations.contains_key(ROTATE_ANNOTATION));
    Ok(State { signing, stage, asked })
}

/// The Secret for these authorities. `metadata` is what stood there before: its resource version makes the write
/// a compare-and-swap, and labels and annotations of others stay.
pub fn write(state: &State, mut metadata: ObjectMeta) -> Secret {
    let mut data = BTreeMap::new();
    let mut put = |key: &str, text: String| data.insert(key.to_owned(), ByteString(text.into_bytes()));
    put(CERTIFICATE_KEY, state.signing.anchor().pem().to_owned());
    put(KEY, state.signing.key_pem());
    match &state.stage {
        Stage::Stable => {}
        Stage::Announced { next, since } => {
            put(NEXT_CERTIFICATE, next.anchor().pem().to_owned());
            put(NEXT_KEY, next.key_pem());
            put(SINCE, since.to_string());
        }
        Stage::Retiring { old, since } => {
            put(OLD_CERTIFICATE, old.pem().to_owned());
            put(SINCE, since.to_string());
        }
    }
    if !state.asked
        && let Some(annotations) = &mut metadata.annotations
    {
        annotations.remove(ROTATE_ANNOTATION);
    }
    Secret { metadata, data: Some(data), type_: Some("Opaque".to_owned()), ..Secret::default() }
}

/// The ConfigMap that shows these authorities to everybody.
pub fn bundle(state: &State) -> ConfigMap {
    let shown = match state.stage {
        Stage::Stable => "Stable",
        Stage::Announced { .. } => "Announced",
        Stage::Retiring { .. } => "Retiring",
    };
    let annotations = [
        (NOT_AFTER_ANNOTATION.to_owned(), state.signing.anchor().not_after().to_string()),
        (STAGE_ANNOTATION.to_owned(), shown.to_owned()),
    ];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(BUNDLE_NAME.to_owned()),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        data: Some([(CERTIFICATE_KEY.to_owned(), state.bundle())].into()),
        ..ConfigMap::default()
    }
}

/// What is published says what it should.
pub fn is_published(wanted: &ConfigMap, found: &ConfigMap) -> bool {
    let holds = |wanted: &Option<BTreeMap<String, String>>, found: &Option<BTreeMap<String, String>>| {
        wanted.iter().flatten().all(|(key, value)| {
            found.as_ref().and_then(|found| found.get(key)).is_some_and(|there| there == value)
        })
    };
    holds(&wanted.data, &found.data) && holds(&wanted.metadata.annotations, &found.metadata.annotations)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::CaPolicy;
    use super::super::rotation::Step;
    use super::*;

    const POLICY: CaPolicy =
        CaPolicy { authority_lifetime: Duration::from_hours(1000), leaf_lifetime: Duration::from_hours(1) };

    fn now() -> Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    fn metadata() -> ObjectMeta {
        let asked = [(ROTATE_ANNOTATION.to_owned(), "please".to_owned())];
        ObjectMeta {
            name: Some("ca".into()),
            annotations: Some(asked.into()),
            resource_version: Some("7".into()),
            ..ObjectMeta::default()
        }
    }

    fn value(secret: &Secret, key: &str) -> Option<String> {
        secret.data.as_ref()?.get(key).map(|value| String::from_utf8(value.0.clone()).unwrap())
    }

    fn with(secret: &Secret, key: &str, text: &str) -> Secret {
        let mut changed = secret.clone();
        changed.data.as_mut().unwrap().insert(key.into(), ByteString(text.as_bytes().to_vec()));
        changed
    }

    fn refused(secret: &Secret) -> String {
        read(secret).unwrap_err().to_string()
    }

    #[test]
    fn every_stage_survives_the_secret() {
        let mut state = State::new(now(), &POLICY).unwrap();
        let first = state.signing.anchor().clone();
        for (step, authorities) in
            [(Step::Rest, 1), (Step::Announce, 2), (Step::Switch, 2), (Step::Retire, 1)]
        {
            state = state.after(step, now(), &POLICY).unwrap();
            let back = read(&write(&state, metadata())).unwrap();
            assert_eq!(back.timeline(), state.timeline(), "{step:?}");
            assert_eq!(back.bundle(), state.bundle(), "{step:?}");
            assert_eq!(back.signing.key_pem(), state.signing.key_pem(), "{step:?}");
            assert_eq!(state.bundle().matches("BEGIN CERTIFICATE").count(), authorities, "{step:?}");
        }
        assert_ne!(*state.signing.anchor(), first);
    }

    #[test]
    fn the_key_of_a_retiring_authority_is_gone() {
        let state = State::new(now(), &POLICY).unwrap();
        let key = state.signing.key_pem();
        let announced = state.after(Step::Announce, now(), &POLICY).unwrap();
        let retiring = announced.after(Step::Switch, now(), &POLICY).unwrap();
        let secret = write(&retiring, metadata());
        let data = secret.data.unwrap();
        assert!(data.values().all(|value| value.0 != key.as_bytes()));
    }

    #[test]
    fn a_wish_is_read_and_is_gone_when_the_rotation_has_begun() {
        let state = State { asked: true, ..State::new(now(), &POLICY).unwrap() };
        assert!(read(&write(&state, metadata())).unwrap().asked);
        let begun = state.after(Step::Announce, now(), &POLICY).unwrap();
        let secret = write(&begun, metadata());
        assert!(!read(&secret).unwrap().asked);
        assert_eq!(secret.metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key_and_a_remedy() {
        let state = State::new(now(), &POLICY).unwrap();
        let secret = write(&state, metadata());
        let mut empty = secret.clone();
        empty.data = None;
        let words = refused(&empty);
        assert!(words.contains("ca.crt") && words.contains("missing") && words.contains("delete"), "{words}");
        assert!(refused(&with(&secret, "ca.crt", "hello")).contains("ca.crt"));
        assert!(refused(&with(&secret, "ca.key", "hello")).contains("ca.key"));
        let other = State::new(now(), &POLICY).unwrap().signing.key_pem();
        assert!(refused(&with(&secret, "ca.key", &other)).contains("not the key"));
        let next = with(&secret, "ca-next.crt", state.signing.anchor().pem());
        assert!(refused(&next).contains("ca-next.key"));
        let old = with(&secret, "ca-old.crt", state.signing.anchor().pem());
        assert!(refused(&old).contains("since"));
        assert!(refused(&with(&old, "since", "yesterday")).contains("since"));
        assert!(refused(&with(&old, "ca-next.crt", state.signing.anchor().pem())).contains("ca-old.crt"));
    }

    #[test]
    fn a_leaf_is_no_authority() {
        let state = State::new(now(), &POLICY).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let identity = somersault_proto::tls::Identity::Coordinator;
        let leaf = state.certify(&identity, &key, now(), &POLICY).unwrap();
        let secret = with(&write(&state, metadata()), "ca.crt", &leaf.pem);
        assert!(refused(&secret).contains("authority"));
    }

    #[test]
    fn no_error_and_no_debug_output_tells_a_key() {
        let state = State::new(now(), &POLICY).unwrap();
        let secret = write(&state, metadata());
        let key = value(&secret, "ca.key").unwrap();
        let line = key.lines().nth(1).unwrap();
        assert!(!format!("{state:?}").contains(line));
        let words = refused(&with(&secret, "ca.crt", &key));
        assert!(!words.contains(line), "{words}");
    }

    #[test]
    fn a_changed_bundle_is_noticed_and_what_others_add_is_not() {
        let state = State::new(now(), &POLICY).unwrap();
        let wanted = bundle(&state);
        assert!(is_published(&wanted, &wanted));
        let mut more = wanted.clone();
        more.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert!(is_published(&wanted, &more));
        let mut changed = wanted.clone();
        changed.data = Some([("ca.crt".to_owned(), "somebody else".to_owned())].into());
        assert!(!is_published(&wanted, &changed));
        assert!(!is_published(&wanted, &ConfigMap::default()));
    }
}
