//! The types of array elements: built-in types whose text form is read cheaply here go in their binary form, which
//! spares the server the parsing; all others go as text, and the server casts them.

/// A type of array elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    /// Text, or the text form of any other type.
    Text,
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Bytea,
    Uuid,
    Date,
    Timestamp,
    Timestamptz,
    /// A WAL position; no table's column is sent so.
    Lsn,
}

const US_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 1970-01-01 to 2000-01-01.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;

impl Element {
    /// How values of a column of this type are sent; the type with its modifier, as SQL.
    pub(super) fn of(type_name: &str) -> Self {
        match type_name {
            "boolean" => Self::Bool,
            "smallint" => Self::Int2,
            "integer" => Self::Int4,
            "bigint" => Self::Int8,
            "real" => Self::Float4,
            "double precision" => Self::Float8,
            "bytea" => Self::Bytea,
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp with time zone" => Self::Timestamptz,
            _ => Self::Text,
        }
    }

    /// Its name in SQL.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Bytea => "bytea",
            Self::Uuid => "uuid",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::Timestamptz => "timestamptz",
            Self::Lsn => "pg_lsn",
        }
    }

    /// Its OID, the same on every server.
    pub(super) fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Bool => 16,
            Self::Int2 => 21,
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Float4 => 700,
            Self::Float8 => 701,
            Self::Bytea => 17,
            Self::Uuid => 2950,
            Self::Date => 1082,
            Self::Timestamp => 1114,
            Self::Timestamptz => 1184,
            Self::Lsn => 3220,
        }
    }

    /// Appends the binary form of a value in text form; answers whether the text was understood.
    pub(super) fn encode(self, text: &[u8], out: &mut Vec<u8>) -> bool {
        self.try_encode(text, out).is_some()
    }

    fn try_encode(self, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Text => out.extend_from_slice(text),
            Self::Bool => out.push(match text {
                b"t" => 1,
                b"f" => 0,
                _ => return None,
            }),
            Self::Int2 => out.extend_from_slice(&i16::try_from(integer(text)?).ok()?.to_be_bytes()),
            Self::Int4 => out.extend_from_slice(&i32::try_from(integer(text)?).ok()?.to_be_bytes()),
            Self::Int8 => out.extend_from_slice(&integer(text)?.to_be_bytes()),
            Self::Float4 => {
                let number: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Float8 => {
                let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Bytea => hex(text.strip_prefix(b"\\x")?, out)?,
            Self::Uuid => {
                let id = uuid::Uuid::try_parse_ascii(text).ok()?;
                out.extend_from_slice(id.as_bytes());
            }
            Self::Date => {
                let days = match text {
                    b"infinity" => i32::MAX,
                    b"-infinity" => i32::MIN,
                    _ => i32::try_from(days(text)?).ok()?,
                };
                out.extend_from_slice(&days.to_be_bytes());
            }
            Self::Timestamp => out.extend_from_slice(&instant(text, false)?.to_be_bytes()),
            Self::Timestamptz => out.extend_from_slice(&instant(text, true)?.to_be_bytes()),
            Self::Lsn => return None,
        }
        Some(())
    }
}

/// A decimal integer as PostgreSQL prints it.
fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    // Gathered below zero, where the range is one larger.
    let number = digits.iter().try_fold(0i64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_sub(i64::from(digit))
    })?;
    if negative { Some(number) } else { number.checked_neg() }
}

/// A number of so many digits at the beginning of `text`, and what follows.
fn digits(text: &[u8], count: usize) -> Option<(i64, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    Some((integer(digits).filter(|number| *number >= 0)?, rest))
}

fn separator(text: &[u8], byte: u8) -> Option<&[u8]> {
    text.strip_prefix(&[byte])
}

fn hex(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    out.reserve(pairs.len());
    for [high, low] in pairs {
        out.push(digit(*high)? << 4 | digit(*low)?);
    }
    Some(())
}

/// Days since 2000-01-01 of a date with a year of four digits; other years are left to the server.
fn days(text: &[u8]) -> Option<i64> {
    let (days, rest) = date(text)?;
    rest.is_empty().then_some(days)
}

fn date(text: &[u8]) -> Option<(i64, &[u8])> {
    let (year, rest) = digits(text, 4)?;
    let (month, rest) = digits(separator(rest, b'-')?, 2)?;
    let (day, rest) = digits(separator(rest, b'-')?, 2)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Howard Hinnant's days_from_civil: years that begin in March put the leap day last.
    let year = if month <= 2 { year - 1 } else { year };
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let days = year.div_euclid(400) * 146_097 + day_of_era - 719_468;
    Some((days - POSTGRES_EPOCH_DAYS, rest))
}

/// Microseconds since 2000-01-01 00:00 UTC of a timestamp in ISO form, with an offset if `zoned`.
fn instant(text: &[u8], zoned: bool) -> Option<i64> {
    match text {
        b"infinity" => return Some(i64::MAX),
        b"-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (days, rest) = date(text)?;
    let (hours, rest) = digits(separator(rest, b' ')?, 2)?;
    let (minutes, rest) = digits(separator(rest, b':')?, 2)?;
    let (seconds, mut rest) = digits(separator(rest, b':')?, 2)?;
    let mut fraction = 0;
    if let Some(after) = separator(rest, b'.') {
        let count = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, after) = digits(after, count).filter(|_| count <= 6)?;
        (fraction, rest) = (number * 10i64.pow(6 - u32::try_from(count).ok()?), after);
    }
    let mut offset = 0;
    if zoned {
        (offset, rest) = zone(rest)?;
    }
    let seconds = days * SECONDS_PER_DAY + hours * 3600 + minutes * 60 + seconds - offset;
    rest.is_empty().then_some(seconds * US_PER_SECOND + fraction)
}

/// Seconds east of UTC: `+HH`, `+HH:MM` or `+HH:MM:SS`.
fn zone(text: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, rest) = text.split_first()?;
    let sign = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, mut rest) = digits(rest, 2)?;
    let mut seconds = hours * 3600;
    for unit in [60, 1] {
        let Some(after) = separator(rest, b':') else { break };
        let (number, after) = digits(after, 2)?;
        (seconds, rest) = (seconds + number * unit, after);
    }
    Some((sign * seconds, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(element: Element, text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        element.encode(text.as_bytes(), &mut out).then_some(out)
    }

    fn number(element: Element, text: &str) -> Option<i64> {
        let bytes = encoded(element, text)?;
        Some(match bytes.len() {
            2 => i16::from_be_bytes(*bytes.first_chunk()?).into(),
            4 => i32::from_be_bytes(*bytes.first_chunk()?).into(),
            _ => i64::from_be_bytes(*bytes.first_chunk()?),
        })
    }

    #[test]
    fn integers_to_their_limits_and_no_further() {
        assert_eq!(number(Element::Int2, "-32768"), Some(-32768));
        assert_eq!(number(Element::Int2, "32768"), None);
        assert_eq!(number(Element::Int4, "2147483647"), Some(2_147_483_647));
        assert_eq!(number(Element::Int4, "-2147483649"), None);
        assert_eq!(number(Element::Int8, "9223372036854775807"), Some(i64::MAX));
        assert_eq!(number(Element::Int8, "-9223372036854775808"), Some(i64::MIN));
        for text in ["9223372036854775808", "", "-", " 1", "1 ", "1.0", "1e3", "+1"] {
            assert_eq!(number(Element::Int8, text), None, "{text}");
        }
    }

    #[test]
    fn dates_and_instants_count_from_the_year_2000() {
        assert_eq!(number(Element::Date, "2000-01-01"), Some(0));
        assert_eq!(number(Element::Date, "1999-12-31"), Some(-1));
        assert_eq!(number(Element::Date, "2000-03-01"), Some(60));
        assert_eq!(number(Element::Date, "1900-03-01"), Some(-36465));
        assert_eq!(number(Element::Date, "infinity"), Some(i64::from(i32::MAX)));
        for text in ["0044-03-15 BC", "12026-01-01", "2026-13-01", "2026-1-1"] {
            assert_eq!(number(Element::Date, text), None, "{text}");
        }
        assert_eq!(number(Element::Timestamp, "2000-01-01 00:00:01.5"), Some(1_500_000));
        assert_eq!(number(Element::Timestamp, "1999-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(number(Element::Timestamp, "2000-01-01 00:00:00+00"), None);
        assert_eq!(number(Element::Timestamp, "-infinity"), Some(i64::MIN));
        let zoned = |text| number(Element::Timestamptz, text);
        assert_eq!(zoned("2000-01-01 05:30:00+05:30"), Some(0));
        assert_eq!(zoned("1999-12-31 19:00:00-05"), Some(0));
        assert_eq!(zoned("2000-01-01 00:19:32+00:19:32"), Some(0));
        for text in ["2000-01-01 00:00:00", "2000-01-01 00:00:00.1234567+00", "2000-01-01"] {
            assert_eq!(zoned(text), None, "{text}");
        }
    }

    #[test]
    fn the_other_types() {
        assert_eq!(encoded(Element::Bool, "t"), Some(vec![1]));
        assert_eq!(encoded(Element::Bool, "true"), None);
        assert_eq!(encoded(Element::Bytea, "\\x00ff"), Some(vec![0, 255]));
        assert_eq!(encoded(Element::Bytea, "\\x0"), None);
        assert_eq!(encoded(Element::Float8, "1.5"), Some(1.5f64.to_be_bytes().to_vec()));
        assert_eq!(encoded(Element::Float8, "-Infinity").map(|bytes| bytes[0]), Some(0xff));
        assert_eq!(encoded(Element::Float4, "NaN").map(|bytes| bytes.len()), Some(4));
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(encoded(Element::Uuid, id).map(|bytes| bytes[0]), Some(0x67));
        assert_eq!(encoded(Element::Text, ""), Some(Vec::new()));
    }
}
