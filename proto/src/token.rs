//! Transfer tokens: the coordinator's word that one target may read one volume of one source.
//!
//! A JWT signed with Ed25519. The key is made when the coordinator starts and lives as long as the process; the
//! public half travels in `Welcome`. A token binds job, source, target, path and end, and the source checks all
//! of them on each call, the target against the caller's certificate.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};

use crate::model::limits::TOKEN_BYTES_MAX;
use crate::model::{AbsolutePath, NodeName};

/// How long a token is good: a disk of 4 TB at 50 MB/s takes 22 hours.
pub const TOKEN_LIFETIME: Duration = Duration::from_hours(24);

/// How far the wall clocks of coordinator and source may differ; the five minutes of Kerberos (RFC 4120). The
/// end is hygiene: what a token allows is bound by its key, which dies with the coordinator.
const CLOCK_SKEW_MAX: Duration = Duration::from_mins(5);

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The transfer.
    pub job: String,
    /// The node that holds the volume.
    pub source_node: NodeName,
    /// The node that may read it.
    pub target_node: NodeName,
    /// The volume there.
    pub source_path: AbsolutePath,
    /// End, seconds since 1970.
    pub exp: u64,
}

/// Signs tokens.
pub struct TokenSigner {
    key: EncodingKey,
    public_key: [u8; 32],
}

/// Checks tokens.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
}

/// Why a token could not be made, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system gave no randomness, or the key was not accepted.
    #[error("cannot make a signing key; does this system have a working random source?")]
    KeyNotMade,
    /// The public key is not one.
    #[error("the token key is not an Ed25519 public key of 32 bytes")]
    BadPublicKey,
    /// The claims could not be signed.
    #[error("cannot sign a token")]
    NotSigned(#[source] jsonwebtoken::errors::Error),
    /// No token, or longer than any of ours.
    #[error("the token has {0} bytes, not 1 to {TOKEN_BYTES_MAX}")]
    BadLength(usize),
    /// It was signed by another key: the coordinator restarted, or somebody made it up.
    #[error(
        "the token's signature does not fit the coordinator's key; a restarted coordinator sends a new one"
    )]
    BadSignature,
    /// It is over.
    #[error("the token has expired; the coordinator sends a new one with the repeated order")]
    Expired,
    /// It is no token of ours.
    #[error("the token cannot be read")]
    Unreadable(#[source] jsonwebtoken::errors::Error),
    /// It is about another node or volume.
    #[error("the token is for {claim} {told}, not for {found}")]
    WrongClaim {
        /// Which claim.
        claim: &'static str,
        /// What the token says.
        told: String,
        /// What was found.
        found: String,
    },
}

impl From<TokenError> for tonic::Status {
    fn from(error: TokenError) -> Self {
        Self::permission_denied(error.to_string())
    }
}

impl TokenSigner {
    /// Makes a new key.
    pub fn generate() -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let seed: [u8; 32] = ring::rand::generate(&random).map_err(|_| TokenError::KeyNotMade)?.expose();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| TokenError::KeyNotMade)?;
        let public_key = pair.public_key().as_ref().try_into().map_err(|_| TokenError::KeyNotMade)?;
        Ok(Self { key: EncodingKey::from_ed_der(&pkcs8(&seed)), public_key })
    }

    /// The public half, for [`TokenVerifier::new`].
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    /// Signs the claims.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.key).map_err(TokenError::NotSigned)
    }
}

impl TokenVerifier {
    /// From the key in `Welcome`.
    pub fn new(public_key: &[u8]) -> Result<Self, TokenError> {
        if public_key.len() != 32 {
            return Err(TokenError::BadPublicKey);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = CLOCK_SKEW_MAX.as_secs();
        Ok(Self { key: DecodingKey::from_ed_der(public_key), validation })
    }

    /// The claims of a token that `source` may honour for the caller `target`, whose name comes from its
    /// certificate.
    pub fn verify(&self, token: &str, source: &NodeName, target: &NodeName) -> Result<Claims, TokenError> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::BadLength(token.len()));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenError::BadSignature,
                ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Unreadable(error),
            })?
            .claims;
        same("source_node", &claims.source_node, source)?;
        same("target_node", &claims.target_node, target)?;
        Ok(claims)
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner").finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier").finish_non_exhaustive()
    }
}

fn same(claim: &'static str, told: &NodeName, found: &NodeName) -> Result<(), TokenError> {
    if told == found {
        return Ok(());
    }
    Err(TokenError::WrongClaim { claim, told: told.to_string(), found: found.to_string() })
}

/// The seed as PKCS#8 version 1, which is what the JWT library reads: a fixed prefix (RFC 8410, section 7).
fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    [PREFIX.as_slice(), seed].concat()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn claims(ends_in_s: i64) -> Claims {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        Claims {
            job: "job-1".into(),
            source_node: node("n2"),
            target_node: node("n3"),
            source_path: "/srv/local/pvc-1".parse().unwrap(),
            exp: now.saturating_add_signed(ends_in_s),
        }
    }

    fn pair() -> (TokenSigner, TokenVerifier) {
        let signer = TokenSigner::generate().unwrap();
        let verifier = TokenVerifier::new(&signer.public_key()).unwrap();
        (signer, verifier)
    }

    #[test]
    fn a_token_is_honoured_for_its_source_and_target_only() {
        let (signer, verifier) = pair();
        let token = signer.sign(&claims(60)).unwrap();
        assert_eq!(verifier.verify(&token, &node("n2"), &node("n3")).unwrap().job, "job-1");
        let wrong = |source, target| verifier.verify(&token, &node(source), &node(target)).unwrap_err();
        assert!(matches!(wrong("n2", "n9"), TokenError::WrongClaim { claim: "target_node", .. }));
        assert!(matches!(wrong("n9", "n3"), TokenError::WrongClaim { claim: "source_node", .. }));
    }

    #[test]
    fn an_expired_token_is_refused_beyond_the_skew() {
        let (signer, verifier) = pair();
        let skewed = signer.sign(&claims(-200)).unwrap();
        assert!(verifier.verify(&skewed, &node("n2"), &node("n3")).is_ok());
        let over = signer.sign(&claims(-400)).unwrap();
        assert!(matches!(verifier.verify(&over, &node("n2"), &node("n3")), Err(TokenError::Expired)));
    }

    #[test]
    fn another_coordinators_token_is_refused() {
        let (signer, _) = pair();
        let (_, verifier) = pair();
        let token = signer.sign(&claims(60)).unwrap();
        assert!(matches!(verifier.verify(&token, &node("n2"), &node("n3")), Err(TokenError::BadSignature)));
    }

    #[test]
    fn forged_and_hostile_tokens_are_refused() {
        let (signer, verifier) = pair();
        let token = signer.sign(&claims(60)).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let refused = |token: &str| verifier.verify(token, &node("n2"), &node("n3")).is_err();
        // {"alg":"none"}: no algorithm but ours is accepted.
        parts[0] = "eyJhbGciOiJub25lIn0";
        assert!(refused(&parts.join(".")));
        assert!(refused(&format!("{}.{}.", parts[0], parts[1])));
        for hostile in ["", "a.b.c", "...", "\0", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(refused(hostile), "{hostile:?}");
        }
        // The same bytes signed as HMAC with the public key as its secret.
        let secret = EncodingKey::from_secret(&signer.public_key());
        let confused = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(60), &secret).unwrap();
        assert!(refused(&confused));
    }

    #[test]
    fn a_public_key_that_is_none_is_refused() {
        assert!(matches!(TokenVerifier::new(&[0; 31]), Err(TokenError::BadPublicKey)));
        assert!(matches!(TokenVerifier::new(&[]), Err(TokenError::BadPublicKey)));
    }

    #[test]
    fn the_longest_claims_fit_the_limit() {
        let (signer, verifier) = pair();
        let longest = Claims {
            job: "j".repeat(200),
            source_path: format!("/{}", "p".repeat(1023)).parse().unwrap(),
            ..claims(60)
        };
        let token = signer.sign(&longest).unwrap();
        assert_eq!(verifier.verify(&token, &node("n2"), &node("n3")).unwrap(), longest);
    }
}
