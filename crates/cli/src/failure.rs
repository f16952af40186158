//! How a command fails: one clear error, a hint on the next line, an exit status by kind.

use std::process::ExitCode;

/// Exit status: 1 the cell did not do it, 2 what was typed or written is wrong, 3 a fault of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cell,
    Input,
    Bug,
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: Kind,
    pub error: anyhow::Error,
    pub hint: Option<String>,
}

impl Failure {
    pub(crate) fn cell(error: impl Into<anyhow::Error>) -> Self {
        Self {
            kind: Kind::Cell,
            error: error.into(),
            hint: None,
        }
    }

    pub(crate) fn input(error: impl Into<anyhow::Error>) -> Self {
        Self {
            kind: Kind::Input,
            error: error.into(),
            hint: None,
        }
    }

    pub(crate) fn bug(error: impl Into<anyhow::Error>) -> Self {
        Self {
            kind: Kind::Bug,
            error: error.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.text());
        if let Some(hint) = &self.hint {
            eprintln!("\nhint: {hint}");
        }
        ExitCode::from(match self.kind {
            Kind::Cell => 1,
            Kind::Input => 2,
            Kind::Bug => 3,
        })
    }

    /// The error and its causes, each only once.
    fn text(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain() {
            let line = cause.to_string();
            if !text.ends_with(&line) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&line);
            }
        }
        text
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::InvalidArgument | tonic::Code::NotFound => {
                Self::input(anyhow::anyhow!("{}", status.message()))
            }
            tonic::Code::Unavailable => Self::cell(anyhow::anyhow!(
                "the cell does not answer ({})",
                status.message()
            ))
            .hint("is it up? start it with: homeostat up CELL_FOLDER"),
            // All other codes: the cell answered, and the answer is no.
            _ => Self::cell(anyhow::anyhow!("{}", status.message())),
        }
    }
}
