//! JSON read so that only broken JSON fails: a field of the wrong type reads as absent, a field given twice counts the
//! last time (as it does in the SDKs), unknown fields are skipped without being stored.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Visitor methods that accept a JSON value of another type than the wanted one, and return the default.
macro_rules! ignore_json {
    (scalars) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
    (array) => {
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
    (object) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
            Ok(Default::default())
        }
    };
}
pub(crate) use ignore_json;

/// Declares a struct and how it is read from a JSON object; anything else than an object reads as the default. A struct
/// that borrows names its lifetime `'de`.
macro_rules! json_object {
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(<$lt:lifetime>)? {
        $($(#[$field_meta:meta])* $field:ident: $ty:ty = $key:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Default)]
        $vis struct $name $(<$lt>)? { $($(#[$field_meta])* pub(crate) $field: $ty),+ }

        impl<'de> serde::Deserialize<'de> for $name $(<$lt>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[expect(non_camel_case_types, reason = "variants are the fields' names")]
                enum Key { $($field,)+ __other }

                impl<'de> serde::Deserialize<'de> for Key {
                    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        struct KeyVisitor;
                        impl serde::de::Visitor<'_> for KeyVisitor {
                            type Value = Key;
                            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                                f.write_str("a key")
                            }
                            fn visit_str<E>(self, key: &str) -> Result<Key, E> {
                                Ok(match key { $($key => Key::$field,)+ _ => Key::__other })
                            }
                        }
                        deserializer.deserialize_identifier(KeyVisitor)
                    }
                }

                struct ObjectVisitor;
                impl<'de> serde::de::Visitor<'de> for ObjectVisitor {
                    type Value = $name $(<$lt>)?;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("JSON")
                    }
                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut object = Self::Value::default();
                        while let Some(key) = map.next_key::<Key>()? {
                            match key {
                                $(Key::$field => object.$field = map.next_value()?,)+
                                Key::__other => { map.next_value::<serde::de::IgnoredAny>()?; }
                            }
                        }
                        Ok(object)
                    }
                    crate::wire::lenient::ignore_json!(scalars);
                    crate::wire::lenient::ignore_json!(array);
                }
                deserializer.deserialize_any(ObjectVisitor)
            }
        }
    };
}
pub(crate) use json_object;

/// Reads JSON. Checks UTF-8 once for the whole instead of for each string; other bodies take the slow path, where only
/// the strings that are read must be UTF-8.
pub(crate) fn read_json<'de, T: Deserialize<'de>>(json: &'de [u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(json) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(json),
    }
}

/// Any JSON value, kept as its text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Raw<'de>(Option<&'de str>);

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw.get())))
    }
}

impl<'de> Raw<'de> {
    /// A text that may or may not be JSON.
    pub(crate) fn of(text: &'de str) -> Self {
        Self(Some(text))
    }

    /// Whether it is a string, array or object that is not empty.
    pub(crate) fn is_filled(self) -> bool {
        match self.0.unwrap_or_default().as_bytes() {
            [b'"', inner @ .., _] => !inner.is_empty(),
            [b'[' | b'{', inner @ .., _] => !inner.trim_ascii().is_empty(),
            _ => false,
        }
    }

    pub(crate) fn is_object(self) -> bool {
        self.0.is_some_and(|text| text.starts_with('{'))
    }

    /// Reads an object; `None` if this is not an object.
    pub(crate) fn object<T: Deserialize<'de>>(self) -> Option<T> {
        serde_json::from_str(self.0.filter(|text| text.starts_with('{'))?).ok()
    }

    /// The text of a string that is not empty.
    pub(crate) fn text(self) -> Option<Cow<'de, str>> {
        let text = self.0?.strip_prefix('"')?.strip_suffix('"')?;
        if text.is_empty() {
            None
        } else if memchr::memchr(b'\\', text.as_bytes()).is_none() {
            Some(Cow::Borrowed(text))
        } else {
            serde_json::from_str(self.0?).ok().map(Cow::Owned)
        }
    }

    /// The text of a string that is not empty, or a number as it is written.
    pub(crate) fn scalar(self) -> Option<Cow<'de, str>> {
        let number = self.0.filter(|text| text.starts_with(|c: char| c == '-' || c.is_ascii_digit()));
        self.text().or(number.map(Cow::Borrowed))
    }

    /// A whole number that is not negative; a number written as a fraction or a string is not one.
    pub(crate) fn count(self) -> Option<u64> {
        self.0?.parse().ok()
    }
}

/// A count of tokens: a whole number, also when it is written with a fraction of zero; anything else is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count(pub(crate) Option<u64>);

impl Count {
    /// More tokens than this in one answer are a provider's mistake (-1 as an unsigned number, mostly), and a sum with
    /// one in it would never be right again.
    const MAX: u64 = 1 << 40;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "checked: whole, and within 2^40"
    )]
    fn of(raw: Raw<'_>) -> Option<u64> {
        if let Some(count) = raw.count() {
            return Some(count).filter(|count| *count <= Self::MAX);
        }
        let number: f64 = raw.0?.parse().ok()?;
        (number.fract() == 0.0 && (0.0..=Self::MAX as f64).contains(&number)).then_some(number as u64)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(|raw| Self(Self::of(raw)))
    }
}

/// A fold over the items of an array, so that no list of them is built.
pub(crate) trait Fold<'de>: Default {
    type Item: Deserialize<'de>;

    fn add(&mut self, item: Self::Item);
}

/// Counts the items without reading them.
#[derive(Debug, Default)]
pub(crate) struct Items(pub(crate) usize);

impl<'de> Fold<'de> for Items {
    type Item = IgnoredAny;

    fn add(&mut self, _: IgnoredAny) {
        self.0 += 1;
    }
}

/// An array, folded; `None`: absent, or not an array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Array<F>(pub(crate) Option<F>);

impl<F> Default for Array<F> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, F: Fold<'de>> Deserialize<'de> for Array<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ArrayVisitor<F>(PhantomData<F>);

        impl<'de, F: Fold<'de>> Visitor<'de> for ArrayVisitor<F> {
            type Value = Array<F>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Array<F>, A::Error> {
                let mut folded = F::default();
                while let Some(item) = seq.next_element()? {
                    folded.add(item);
                }
                Ok(Array(Some(folded)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Array<F>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Array(None))
            }

            ignore_json!(scalars);
        }
        deserializer.deserialize_any(ArrayVisitor(PhantomData))
    }
}
