//! Runs a cell file through the starlark crate; nothing of that crate leaves this module.
//!
//! The builders (`cell`, `machine`, `job`, …) only note that they were called, with what and from where. They accept any
//! arguments: checking happens afterwards, on plain data, where several mistakes can be reported at once and each can
//! point at its own argument.
//!
//! Limits: source is scanned for depth before it is parsed ([`crate::scan`]), the call stack, heap, ticks and time of the
//! evaluation are bounded. The evaluator looks at heap and time only between instructions: one long primitive
//! (`"x" * 10000000000`) gets past them. Where that matters, [`crate::load_apart`] evaluates in another process.

mod builders;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use homeostat_model::{Bytes, library};
use starlark::ErrorKind;
use starlark::codemap::FileSpan;
use starlark::environment::{FrozenModule, Globals, GlobalsBuilder, Module};
use starlark::eval::{Evaluator, ReturnFileLoader};
use starlark::syntax::{AstModule, Dialect};

use self::builders::{Collector, PARAMETER, functions};
use crate::error::{Problem, ProblemKind};
use crate::item::{Builder, Item};
use crate::limits::Limits;
use crate::nearest::nearest;
use crate::scan;
use crate::source::{Sources, Span};

/// What evaluation leaves behind.
pub(crate) struct Evaluated {
    pub items: Vec<Item>,
    pub sources: Sources,
}

/// What a file is written in: which functions it may call beside those of Starlark itself.
#[derive(Debug, Clone)]
pub(crate) enum Language {
    /// `cell.star`: a cell.
    Cell,
    /// `site.star`: checks, with the probes and fixes of the library.
    Site {
        /// By name, as said on the command line.
        parameters: BTreeMap<String, String>,
    },
}

impl Language {
    fn builders(&self) -> Vec<Builder> {
        match self {
            Language::Cell => Builder::OF_CELLS.to_vec(),
            Language::Site { .. } => {
                let library = library::kinds().iter().map(Builder::Library);
                library.chain([Builder::SiteCheck]).collect()
            }
        }
    }

    /// What a file of it is called in errors.
    fn file(&self) -> &'static str {
        match self {
            Language::Cell => "the cell file",
            Language::Site { .. } => "the site file",
        }
    }
}

/// Evaluates the file and those it loads.
pub(crate) fn evaluate(
    path: &Path,
    language: Language,
    limits: &Limits,
) -> Result<Evaluated, Box<Problem>> {
    let file = path.display().to_string();
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut session = Session {
        folder,
        limits,
        deadline: Instant::now() + limits.time,
        globals: GlobalsBuilder::standard()
            .with(|globals| functions(globals, &language))
            .build(),
        sources: Sources::default(),
        collector: Collector {
            items: RefCell::default(),
            most: limits.items,
            parameters: match &language {
                Language::Cell => BTreeMap::new(),
                Language::Site { parameters } => parameters.clone(),
            },
            asked: RefCell::default(),
        },
        language,
        loaded: BTreeMap::new(),
        loading: Vec::new(),
    };
    let text =
        read(path, limits).map_err(|why| Problem::without_place(&file, why.kind, why.message))?;
    session.module(&file, text)?;
    session.no_parameter_is_strange(&file)?;
    Ok(Evaluated {
        items: session.collector.items.into_inner(),
        sources: session.sources,
    })
}

struct Session<'a> {
    folder: PathBuf,
    limits: &'a Limits,
    deadline: Instant,
    language: Language,
    globals: Globals,
    sources: Sources,
    collector: Collector,
    /// By the path after `load(`.
    loaded: BTreeMap<String, FrozenModule>,
    /// The chain of files that is being loaded, outermost first.
    loading: Vec<String>,
}

impl Session<'_> {
    /// Whoever sets a parameter that the file never asks for has mistyped its name.
    fn no_parameter_is_strange(&self, file: &str) -> Result<(), Box<Problem>> {
        let asked = self.collector.asked.borrow();
        let mut given = self.collector.parameters.keys();
        let Some(strange) = given.find(|name| !asked.contains(*name)) else {
            return Ok(());
        };
        let message = format!("it has no parameter '{strange}'");
        let mut problem = Problem::without_place(file, ProblemKind::Declared, message);
        problem.hint = match nearest(strange, asked.iter().map(String::as_str)) {
            Some(near) => Some(format!("did you mean '{near}'?")),
            None if asked.is_empty() => Some("it has none".to_owned()),
            None => {
                let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
                Some(format!("it has {}", asked.join(", ")))
            }
        };
        Err(Box::new(problem))
    }

    fn module(&mut self, file: &str, text: String) -> Result<FrozenModule, Box<Problem>> {
        self.sources.add(file, &text);
        if let Err((at, message)) = scan::guard(&text) {
            let span = Span {
                file: file.into(),
                at,
            };
            return Err(Box::new(self.problem(&span, message.to_owned())));
        }
        let dialect = Dialect {
            enable_top_level_stmt: true,
            enable_f_strings: true,
            enable_keyword_only_arguments: true,
            ..Dialect::Standard
        };
        let ast =
            AstModule::parse(file, text, &dialect).map_err(|e| self.starlark_problem(file, &e))?;
        let wanted: Vec<(String, Span)> = ast
            .loads()
            .iter()
            .map(|load| (load.module_id.to_owned(), span_of(&load.span)))
            .collect();
        for (name, span) in &wanted {
            self.load(name, span)?;
        }
        self.run(file, ast)
    }

    fn run(&mut self, file: &str, ast: AstModule) -> Result<FrozenModule, Box<Problem>> {
        let modules: HashMap<&str, &FrozenModule> = self
            .loaded
            .iter()
            .map(|(name, module)| (name.as_str(), module))
            .collect();
        let loader = ReturnFileLoader { modules: &modules };
        Module::with_temp_heap(|module| {
            if let Err((error, limit)) = self.run_in(&module, &loader, ast) {
                let mut problem = self.starlark_problem(file, &error);
                if let Some(limit) = limit {
                    problem.message = limit;
                }
                return Err(Box::new(problem));
            }
            module.freeze().map_err(|e| {
                let message = format!("cannot freeze the module: {e:?}");
                Box::new(Problem::without_place(file, ProblemKind::Bug, message))
            })
        })
    }

    /// Evaluates within the limits. With an error comes the limit that was hit, if it was one.
    fn run_in(
        &self,
        module: &Module<'_>,
        loader: &ReturnFileLoader<'_>,
        ast: AstModule,
    ) -> Result<(), (starlark::Error, Option<String>)> {
        let deadline = self.deadline;
        let limits = self.limits;
        let mut evaluator = Evaluator::new(module);
        evaluator.set_loader(loader);
        evaluator.extra = Some(&self.collector);
        evaluator.set_check_cancelled(Box::new(move || Instant::now() > deadline));
        evaluator
            .set_max_callstack_size(limits.calls)
            .and_then(|()| evaluator.set_max_heap_size(limits.heap_bytes))
            .and_then(|()| evaluator.set_max_tick_count(limits.ticks))
            .map_err(|e| (starlark::Error::new_other(e), None))?;
        let Err(error) = evaluator.eval_module(ast, &self.globals) else {
            return Ok(());
        };
        let heap_bytes =
            module.heap().peak_allocated_bytes() + module.frozen_heap().allocated_bytes();
        let limit = match error.kind() {
            ErrorKind::StackOverflow(_) => Some(format!(
                "functions call each other more than {} deep",
                limits.calls
            )),
            ErrorKind::Other(_) if heap_bytes > limits.heap_bytes => {
                let most = Bytes(limits.heap_bytes as u64);
                Some(format!("evaluating it takes more than {most} of memory"))
            }
            ErrorKind::Other(_) if evaluator.get_total_tick_count() > limits.ticks => Some(
                format!("evaluating it takes more than {} steps", limits.ticks),
            ),
            ErrorKind::Other(_) if Instant::now() > deadline => {
                Some(format!("evaluating it takes longer than {:?}", limits.time))
            }
            _ => None,
        };
        Err((error, limit))
    }

    /// Loads a file beside the cell file (once), for the `load()` that stands at `span`.
    fn load(&mut self, name: &str, span: &Span) -> Result<(), Box<Problem>> {
        if self.loaded.contains_key(name) {
            return Ok(());
        }
        let refuse =
            |session: &Self, message: String| Err(Box::new(session.problem(span, message)));
        if self.loading.iter().any(|loading| loading == name) {
            let mut chain = self.loading.clone();
            chain.push(name.to_owned());
            return refuse(
                self,
                format!("files load each other: {}", chain.join(" -> ")),
            );
        }
        if self.loaded.len() + self.loading.len() >= self.limits.files {
            return refuse(
                self,
                format!("more than {} files are loaded", self.limits.files),
            );
        }
        let relative = Path::new(name);
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !plain
            || relative
                .extension()
                .is_none_or(|extension| extension != "star")
        {
            return refuse(
                self,
                format!(
                    "'{name}' is not the name of a .star file in the folder of {}",
                    self.language.file()
                ),
            );
        }
        let path = self.folder.join(relative);
        if !stays_inside(&self.folder, &path) {
            return refuse(
                self,
                format!(
                    "'{name}' leads out of the folder of {}",
                    self.language.file()
                ),
            );
        }
        let text = match read(&path, self.limits) {
            Ok(text) => text,
            Err(why) => {
                let message = format!("cannot load '{name}': {}", why.message);
                let mut problem = self.problem(span, message);
                problem.kind = why.kind;
                return Err(Box::new(problem));
            }
        };
        self.loading.push(name.to_owned());
        let module = self.module(&path.display().to_string(), text)?;
        self.loading.pop();
        self.loaded.insert(name.to_owned(), module);
        Ok(())
    }

    fn problem(&self, span: &Span, message: String) -> Problem {
        Problem {
            kind: ProblemKind::Declared,
            file: span.file.to_string(),
            place: Some(self.sources.place(span)),
            message,
            called_from: Vec::new(),
            hint: None,
        }
    }

    fn starlark_problem(&self, file: &str, error: &starlark::Error) -> Problem {
        let kind = match error.kind() {
            ErrorKind::Internal(_) => ProblemKind::Bug,
            _ => ProblemKind::Declared,
        };
        let builders = self.language.builders();
        let ours = builders.iter().map(|builder| builder.name());
        let (message, hint) = reword(&words_of(error), ours.chain([PARAMETER]));
        let place = error.span().map(|at| self.sources.place(&span_of(at)));
        // The innermost frame of a builder, or of `fail`, is the place itself.
        let frames = error.call_stack().frames.iter().rev();
        let called_from = frames
            .filter_map(|frame| frame.location.as_ref())
            .map(|at| self.sources.place(&span_of(at)))
            .filter(|frame| Some(frame) != place.as_ref())
            .collect();
        Problem {
            kind,
            file: file.to_owned(),
            place,
            message,
            called_from,
            hint,
        }
    }
}

fn words_of(error: &starlark::Error) -> String {
    match error.kind() {
        // Displayed, it would begin with `fail:`; the words are the file's own.
        ErrorKind::Fail(e) => e.to_string(),
        _ => error.without_diagnostic().to_string(),
    }
}

/// Fits the words of the starlark crate into ours: lower case, no final period, the suggestion as a hint.
fn reword<'a>(said: &str, ours: impl Iterator<Item = &'a str>) -> (String, Option<String>) {
    let said = said.replace('`', "'");
    let (message, suggestion) = match said.split_once(", did you mean ") {
        Some((message, suggestion)) => (message, Some(suggestion.trim_matches(['\'', '?']))),
        None => (said.as_str(), None),
    };
    // Its suggestion comes from all that is defined, however far; ours must be near, and the builders come first.
    let near = match message.split('\'').nth(1) {
        Some(wrong) => nearest(wrong, ours).or_else(|| nearest(wrong, suggestion)),
        None => None,
    };
    let message = message.trim().trim_end_matches('.');
    let second_is_lower = message.chars().nth(1).is_some_and(char::is_lowercase);
    let mut characters = message.chars();
    let message = match characters.next() {
        Some(first) if second_is_lower => first.to_lowercase().chain(characters).collect(),
        _ => message.to_owned(),
    };
    let hint = suggestion
        .and(near)
        .map(|near| format!("did you mean '{near}'?"));
    (message, hint)
}

/// Follows symbolic links; a file that does not exist is inside, and reading it says so.
fn stays_inside(folder: &Path, path: &Path) -> bool {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    match (folder.canonicalize(), path.canonicalize()) {
        (Ok(folder), Ok(path)) => path.starts_with(folder),
        (_, Err(_)) | (Err(_), Ok(_)) => true,
    }
}

struct Unreadable {
    kind: ProblemKind,
    message: String,
}

/// Reads at most one byte more than allowed, whatever the file claims to be.
fn read(path: &Path, limits: &Limits) -> Result<String, Unreadable> {
    let environment = |what: &str, e: std::io::Error| Unreadable {
        kind: ProblemKind::Environment,
        message: format!("cannot {what} it: {e}"),
    };
    let declared = |message: String| Unreadable {
        kind: ProblemKind::Declared,
        message,
    };
    let file = File::open(path).map_err(|e| environment("open", e))?;
    let mut bytes = Vec::new();
    let most = limits.source_bytes as u64;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| environment("read", e))?;
    if bytes.len() > limits.source_bytes {
        return Err(declared(format!("it is larger than {most} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        declared(format!(
            "it is not UTF-8 text: byte {}",
            e.utf8_error().valid_up_to()
        ))
    })
}

fn span_of(at: &FileSpan) -> Span {
    Span {
        file: Arc::from(at.filename()),
        at: at.span.begin().get() as usize..at.span.end().get() as usize,
    }
}
