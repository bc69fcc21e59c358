//! What a signing request shows: that its sender has the private key of the public key in it. Nothing else in it
//! counts, names least of all.

use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKey};

/// The public key of a request that its sender has signed; an elliptic one, of which weak ones cannot be made.
pub fn public_key(der: &[u8]) -> Result<PublicKey, String> {
    let request =
        CertificateSigningRequestParams::from_der(&der.into()).map_err(|error| error.to_string())?;
    let algorithm = request.public_key.algorithm();
    if *algorithm != PKCS_ECDSA_P256_SHA256 && *algorithm != PKCS_ED25519 {
        return Err("the key is neither ECDSA on P-256 nor Ed25519".to_owned());
    }
    Ok(request.public_key)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData};

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_key_is_the_one_that_signed() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(public_key(&request(&key)).unwrap().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn a_request_that_was_changed_is_refused() {
        let mut der = request(&KeyPair::generate().unwrap());
        // The signature is at the end.
        *der.last_mut().unwrap() ^= 1;
        assert!(public_key(&der).is_err());
    }

    #[test]
    fn a_request_with_the_key_of_somebody_else_is_refused() {
        let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut der = request(&mine);
        let at = der.windows(65).position(|window| window == mine.der_bytes()).unwrap();
        der[at..at + 65].copy_from_slice(theirs.der_bytes());
        assert!(public_key(&der).is_err());
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(public_key(&request(&key)).unwrap_err().contains("P-256"));
    }

    #[test]
    fn garbage_is_refused() {
        let good = request(&KeyPair::generate().unwrap());
        for length in 0..good.len() {
            assert!(public_key(&good[..length]).is_err(), "cut to {length}");
        }
        assert!(public_key(&[0xff; 4096]).is_err());
    }
}
