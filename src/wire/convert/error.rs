//! Errors of conversion.

use std::fmt;

use super::fields::At;

/// A request that cannot be expressed in the provider's format (or not read in the client's), or an answer that
/// violates the provider's format. Displays as one sentence that names the field, fit for the caller's eyes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConvertError {
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ConvertError {
    /// About the whole body, or about something without a path of its own.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), param: None, code: None }
    }

    /// About the field `at`; `problem` follows its name: `must be a string`.
    pub(crate) fn at(at: &At<'_>, problem: impl fmt::Display) -> Self {
        let param = at.to_string();
        let message =
            if param.is_empty() { format!("The body {problem}") } else { format!("`{param}` {problem}") };
        Self { message, param: Some(param).filter(|param| !param.is_empty()), code: None }
    }

    /// Adds a code that the client's SDK acts on.
    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The code that the client's SDK acts on, if there is one.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// Path of the field in the caller's body, when one field is to blame; OpenAI's `param`.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }
}
