//! The builders as Starlark sees them, and Starlark's values as plain data.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use allocative::Allocative;
use starlark::any::ProvidesStaticType;
use starlark::environment::GlobalsBuilder;
use starlark::eval::{Arguments, Evaluator};
use starlark::starlark_simple_value;
use starlark::values::dict::DictRef;
use starlark::values::float::StarlarkFloat;
use starlark::values::list::ListRef;
use starlark::values::structs::{AllocStruct, StructRef};
use starlark::values::tuple::TupleRef;
use starlark::values::{
    Heap, NoSerialize, StarlarkValue, UnpackValue, Value, ValueLike, starlark_value,
};

use super::Language;
use super::span_of;
use crate::item::{Argument, Builder, Datum, Item};

/// The calls noted so far. Loaded files share it.
#[derive(Debug, ProvidesStaticType)]
pub(super) struct Collector {
    pub(super) items: RefCell<Vec<Item>>,
    pub(super) most: usize,
    /// What the file can ask for with `parameter()`.
    pub(super) parameters: BTreeMap<String, String>,
    /// Those it asked for.
    pub(super) asked: RefCell<BTreeSet<String>>,
}

/// Makes the functions of a language known.
pub(super) fn functions(globals: &mut GlobalsBuilder, language: &Language) {
    for builder in language.builders() {
        let function = Function {
            does: Does::Note(builder),
        };
        globals.set(builder.name(), function);
    }
    if let Language::Site { .. } = language {
        let function = Function {
            does: Does::Parameter,
        };
        globals.set(PARAMETER, function);
    }
}

pub(super) const PARAMETER: &str = "parameter";

/// A function of ours as Starlark sees it. What it takes is in tables, so that none has to be written by hand.
#[derive(Debug, ProvidesStaticType, NoSerialize, Allocative)]
struct Function {
    #[allocative(skip)]
    does: Does,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Note(Builder),
    Parameter,
}

starlark_simple_value!(Function);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.does {
            Does::Note(builder) => builder.name(),
            Does::Parameter => PARAMETER,
        })
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for Function {
    fn invoke(
        &self,
        _me: Value<'v>,
        arguments: &Arguments<'v, '_>,
        evaluator: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let given = Given::of(arguments, evaluator.heap())?;
        let answer = match self.does {
            Does::Note(builder) => note(builder, &given, evaluator),
            Does::Parameter => parameter(&given, evaluator),
        };
        answer.map_err(starlark::Error::new_other)
    }
}

/// The arguments of a call.
struct Given<'v> {
    positional: Vec<Value<'v>>,
    named: Vec<(String, Value<'v>)>,
}

impl<'v> Given<'v> {
    fn of(arguments: &Arguments<'v, '_>, heap: Heap<'v>) -> starlark::Result<Self> {
        let names = arguments.names_map()?;
        let named = names
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), *value));
        Ok(Self {
            positional: arguments.positions(heap)?.collect(),
            named: named.collect(),
        })
    }

    fn get(&self, position: usize, name: &str) -> Option<Value<'v>> {
        let named = self.named.iter().find(|(given, _)| given == name);
        self.positional
            .get(position)
            .copied()
            .or(named.map(|(_, value)| *value))
    }
}

/// `parameter("name", default)`: what was said on the command line, in the type of the default.
fn parameter<'v>(
    given: &Given<'v>,
    evaluator: &mut Evaluator<'v, '_, '_>,
) -> anyhow::Result<Value<'v>> {
    let collector = collector(evaluator)?;
    let known = ["name", "default"];
    let unknown = given
        .named
        .iter()
        .find(|(name, _)| !known.contains(&name.as_str()));
    if unknown.is_some() || given.positional.len() > known.len() {
        anyhow::bail!("{PARAMETER}() takes a name and a default");
    }
    let name = given.get(0, "name").and_then(|name| name.unpack_str());
    let Some(name) = name else {
        anyhow::bail!("{PARAMETER}() needs the argument 'name', a string");
    };
    collector.asked.borrow_mut().insert(name.to_owned());
    let default = given.get(1, "default");
    let Some(text) = collector.parameters.get(name) else {
        return default.ok_or_else(|| {
            anyhow::anyhow!(
                "the parameter '{name}' has no default and was not set; add --set {name}=VALUE"
            )
        });
    };
    let heap = evaluator.heap();
    match default.map(|default| datum(default, 0)) {
        Some(Datum::Int(_)) => match text.parse::<i64>() {
            Ok(number) => Ok(heap.alloc(number)),
            Err(_) => anyhow::bail!("the parameter '{name}' must be a whole number, not '{text}'"),
        },
        Some(Datum::Bool(_)) => match text.as_str() {
            "true" | "True" => Ok(Value::new_bool(true)),
            "false" | "False" => Ok(Value::new_bool(false)),
            _ => anyhow::bail!("the parameter '{name}' must be true or false, not '{text}'"),
        },
        Some(Datum::List(_)) => {
            let parts = text.split(',').filter(|part| !part.is_empty());
            Ok(heap.alloc(parts.collect::<Vec<_>>()))
        }
        Some(_) | None => Ok(heap.alloc(text.as_str())),
    }
}

fn collector<'a>(evaluator: &Evaluator<'_, 'a, '_>) -> anyhow::Result<&'a Collector> {
    evaluator
        .extra
        .and_then(|extra| extra.downcast_ref::<Collector>())
        .ok_or_else(|| anyhow::anyhow!("the collector is not set"))
}

/// How deep a value that a cell file builds may be nested. Arguments need two.
const DEEPEST_VALUE: usize = 8;

fn datum(value: Value<'_>, depth: usize) -> Datum {
    if depth > DEEPEST_VALUE {
        return Datum::Other("value nested too deeply".to_owned());
    }
    let inner = |value| datum(value, depth + 1);
    if value.is_none() {
        Datum::None
    } else if let Some(value) = value.unpack_bool() {
        Datum::Bool(value)
    } else if let Some(text) = value.unpack_str() {
        Datum::Text(text.to_owned())
    } else if let Ok(Some(value)) = i64::unpack_value(value) {
        Datum::Int(value)
    } else if let Some(float) = value.downcast_ref::<StarlarkFloat>() {
        Datum::Float(float.0)
    } else if let Some(list) = ListRef::from_value(value) {
        Datum::List(list.iter().map(inner).collect())
    } else if let Some(tuple) = TupleRef::from_value(value) {
        Datum::List(tuple.iter().map(inner).collect())
    } else if let Some(dict) = DictRef::from_value(value) {
        Datum::Dict(
            dict.iter()
                .map(|(key, value)| (inner(key), inner(value)))
                .collect(),
        )
    } else if let Some(probe) = probe_of(value) {
        Datum::Probe(probe)
    } else {
        Datum::Other(value.get_type().to_owned())
    }
}

/// A probe is handed around as a struct with the number of its item; the file has no other way to make a struct.
const PROBE_FIELD: &str = "probe";

fn probe_of(value: Value<'_>) -> Option<usize> {
    let (name, index) = StructRef::from_value(value)?.iter().next()?;
    let index = index
        .unpack_i32()
        .filter(|_| name.as_str() == PROBE_FIELD)?;
    usize::try_from(index).ok()
}

/// Notes a call. Answers the name that was given, so that `web = job("web", …)` can be used where a name is wanted; for
/// a probe, the probe.
fn note<'v>(
    builder: Builder,
    given: &Given<'v>,
    evaluator: &mut Evaluator<'v, '_, '_>,
) -> anyhow::Result<Value<'v>> {
    let collector = collector(evaluator)?;
    let parameters = builder.parameters();
    if given.positional.len() > builder.positional() {
        anyhow::bail!(
            "{}() takes {} argument{} without a name, got {}; name the others",
            builder.name(),
            builder.positional(),
            if builder.positional() == 1 { "" } else { "s" },
            given.positional.len(),
        );
    }
    let mut arguments = Vec::new();
    for (position, value) in given.positional.iter().enumerate() {
        arguments.push(Argument {
            name: parameters[position].to_owned(),
            position: Some(position),
            value: datum(*value, 0),
        });
    }
    for (name, value) in &given.named {
        if arguments.iter().any(|argument| argument.name == *name) {
            anyhow::bail!("{}() was given '{name}' twice", builder.name());
        }
        arguments.push(Argument {
            name: name.clone(),
            position: None,
            value: datum(*value, 0),
        });
    }
    let mut spans = evaluator
        .call_stack()
        .into_frames()
        .into_iter()
        .rev()
        .filter_map(|frame| frame.location)
        .map(|at| span_of(&at));
    let at = spans
        .next()
        .ok_or_else(|| anyhow::anyhow!("{}() was called from nowhere", builder.name()))?;
    let answer = match arguments.first().map(|argument| &argument.value) {
        Some(Datum::Text(name)) => evaluator.heap().alloc(name.as_str()),
        Some(_) | None => Value::new_none(),
    };
    let mut items = collector.items.borrow_mut();
    if items.len() >= collector.most {
        anyhow::bail!("the file declares more than {} things", collector.most);
    }
    items.push(Item {
        builder,
        arguments,
        at,
        called_from: spans.collect(),
    });
    if builder.is_probe() {
        let index = i32::try_from(items.len() - 1)?;
        return Ok(evaluator.heap().alloc(AllocStruct([(PROBE_FIELD, index)])));
    }
    Ok(answer)
}
