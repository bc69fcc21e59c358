//! Kubernetes quantities (`1Gi`, `500m`, `1e9`), parsed strictly and exactly: no floating point.
//!
//! Grammar: `[+-] digits [. digits] suffix`, where the suffix is one of `n u m "" k M G T P E`,
//! `Ki Mi Gi Ti Pi Ei`, or a decimal exponent `e`/`E` with a signed number
//! (Kubernetes API reference, `resource.Quantity`). Negative quantities have no meaning here and are refused.

/// Thousandths are the finest that Kubernetes keeps; finer ones are rounded up, as it does.
const SCALE: u128 = 1000;
/// 2^63-1, the largest quantity of Kubernetes.
const VALUE_MAX: u128 = i64::MAX as u128;
/// Longest text looked at: 19 digits, a point, and a fraction that nobody writes longer.
const TEXT_BYTES_MAX: usize = 64;

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the grammar.
    #[error("{0:?} is not a quantity such as 10Gi, 500m or 1e9")]
    Malformed(String),
    /// Below zero.
    #[error("{0:?} is negative")]
    Negative(String),
    /// Above 2^63-1.
    #[error("{0:?} is larger than 2^63-1")]
    TooLarge(String),
}

/// Whole units, rounded up: bytes of `1Gi`, pieces of `3`.
pub fn units(text: &str) -> Result<u64, QuantityError> {
    let value = thousandths(text)?.div_ceil(SCALE);
    u64::try_from(value).map_err(|_| QuantityError::TooLarge(shown(text)))
}

/// Thousandths of a unit, rounded up: millicores of `1.5` or `500m`.
pub fn millis(text: &str) -> Result<u64, QuantityError> {
    u64::try_from(thousandths(text)?).map_err(|_| QuantityError::TooLarge(shown(text)))
}

fn thousandths(text: &str) -> Result<u128, QuantityError> {
    let malformed = || QuantityError::Malformed(shown(text));
    if text.len() > TEXT_BYTES_MAX || !text.is_ascii() {
        return Err(malformed());
    }
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(malformed());
    }
    let (multiplier, exponent) = scale_of(suffix).ok_or_else(malformed)?;
    let digits = format!("{whole}{fraction}");
    let digits = match digits.trim_start_matches('0') {
        "" => return Ok(0),
        significant => significant,
    };
    if negative {
        return Err(QuantityError::Negative(shown(text)));
    }
    let too_large = || QuantityError::TooLarge(shown(text));
    // value = digits * multiplier * 10^(exponent - fraction), wanted in thousandths.
    let fraction = i64::try_from(fraction.len()).map_err(|_| malformed())?;
    let power = exponent - fraction + 3;
    let value = match u32::try_from(power) {
        Ok(up) => {
            let base: u128 = digits.parse().map_err(|_| too_large())?;
            let scaled = 10_u128.checked_pow(up).and_then(|power| base.checked_mul(power));
            scaled.and_then(|scaled| scaled.checked_mul(multiplier)).ok_or_else(too_large)?
        }
        Err(_) => divided(digits, multiplier, power.unsigned_abs()).ok_or_else(too_large)?,
    };
    if value > VALUE_MAX * SCALE { Err(too_large()) } else { Ok(value) }
}

/// `digits * multiplier / 10^down`, rounded up; `None` beyond 128 bits.
fn divided(digits: &str, multiplier: u128, down: u64) -> Option<u128> {
    let base: u128 = digits.parse().ok()?;
    let product = base.checked_mul(multiplier)?;
    let divisor = u32::try_from(down).ok().and_then(|down| 10_u128.checked_pow(down));
    Some(divisor.map_or(1, |divisor| product.div_ceil(divisor)))
}

/// Multiplier and power of ten of a suffix.
fn scale_of(suffix: &str) -> Option<(u128, i64)> {
    let decimal = |power| Some((1, power));
    let binary = |shift: u32| Some((1_u128 << shift, 0));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            // More than four digits of exponent is out of range whatever the number.
            let sane = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            if sane { Some((1, exponent.parse().ok()?)) } else { None }
        }
    }
}

/// The text as errors quote it.
fn shown(text: &str) -> String {
    text.chars().take(TEXT_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_what_kubernetes_prints() {
        let table = [
            ("0", 0),
            ("1", 1_000),
            ("1Gi", (1 << 30) * 1_000),
            ("500m", 500),
            ("1k", 1_000_000),
            ("1e9", 1_000_000_000_000),
            ("1E3", 1_000_000),
            ("12e-1", 1_200),
            ("1E", 1_000_000_000_000_000_000 * 1_000),
            ("1138166334", 1_138_166_334_000),
            ("24683060Ki", 24_683_060 * 1024 * 1_000),
            ("1.5Gi", 1_536 * 1024 * 1024 * 1_000),
            (".5", 500),
            ("5.", 5_000),
            ("+5", 5_000),
            ("-0", 0),
            ("0.1m", 1),
            ("1n", 1),
            ("1u", 1),
            ("007", 7_000),
            ("0.0000000000000000001", 1),
            ("9223372036854775807", u128::from(i64::MAX as u64) * 1_000),
            ("7Ei", (7 << 60) * 1_000),
        ];
        for (text, expected) in table {
            assert_eq!(thousandths(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn rounds_up_to_whole_units() {
        assert_eq!(units("1001m"), Ok(2));
        assert_eq!(units("50M"), Ok(50_000_000));
        assert_eq!(millis("1.5"), Ok(1_500));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "", ".", "+", "Gi", "1gi", "1GI", "1K", "1ki", "1 Gi", " 1", "1\n", "1.2.3", "--1", "1e", "1e+",
            "1ee3", "1e99999", "0x10", "1_000", "1,5", "1Gib", "NaN", "inf", "¹", "1e3m", "1mi",
        ] {
            assert!(matches!(thousandths(text), Err(QuantityError::Malformed(_))), "{text:?}");
        }
        assert!(matches!(thousandths("-1"), Err(QuantityError::Negative(_))));
        for text in
            ["8Ei", "1e19", "9223372036854775808", "10E", "1e9999", "99999999999999999999999999999999999999"]
        {
            assert!(matches!(thousandths(text), Err(QuantityError::TooLarge(_))), "{text:?}");
        }
        assert!(matches!(units(&"1".repeat(100)), Err(QuantityError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            _ = thousandths(&text);
        }

        #[test]
        fn never_panics_on_what_looks_right(text in "[+-]?[0-9]{0,40}[.]?[0-9]{0,40}(e[+-]?[0-9]{0,6}|[a-zA-Z]{0,2})") {
            _ = thousandths(&text);
        }

        #[test]
        fn whole_numbers_are_themselves(number in 0..=i64::MAX as u64) {
            prop_assert_eq!(units(&number.to_string()), Ok(number));
        }

        #[test]
        fn suffixes_multiply(number in 0_u64..1_000_000, (suffix, factor) in prop_oneof![
            Just(("k", 1_000)), Just(("M", 1_000_000)), Just(("Ki", 1_u64 << 10)), Just(("Mi", 1 << 20)),
            Just(("Gi", 1 << 30)), Just(("Ti", 1 << 40)),
        ]) {
            prop_assert_eq!(units(&format!("{number}{suffix}")), Ok(number * factor));
        }

        #[test]
        fn a_fraction_is_exact(whole in 0_u64..1_000_000, thousandth in 0_u64..1_000) {
            prop_assert_eq!(millis(&format!("{whole}.{thousandth:03}")), Ok(whole * 1_000 + thousandth));
            prop_assert_eq!(millis(&format!("{}m", whole * 1_000 + thousandth)), Ok(whole * 1_000 + thousandth));
        }

        #[test]
        fn rounding_up_never_loses(millis_ in 0_u64..u64::MAX / 2_000_000) {
            prop_assert_eq!(units(&format!("{millis_}m")), Ok(millis_.div_ceil(1_000)));
        }
    }
}
