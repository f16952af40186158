//! The builders as Starlark sees them, and Starlark's values as plain data.

use std::cell::RefCell;

use starlark::any::ProvidesStaticType;
use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::dict::DictRef;
use starlark::values::float::StarlarkFloat;
use starlark::values::list::ListRef;
use starlark::values::structs::{AllocStruct, StructRef};
use starlark::values::tuple::{TupleRef, UnpackTuple};
use starlark::values::{UnpackValue, Value, ValueLike};

use super::span_of;
use crate::item::{Argument, Builder, Datum, Item};

/// The calls noted so far. Loaded files share it.
#[derive(Debug, ProvidesStaticType)]
pub(super) struct Collector {
    pub(super) items: RefCell<Vec<Item>>,
    pub(super) most: usize,
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

type Positional<'v> = UnpackTuple<Value<'v>>;
type Named<'v> = SmallMap<String, Value<'v>>;

/// Notes a call. Answers the name that was given, so that `web = job("web", …)` can be used where a name is wanted; for
/// a probe, the probe.
fn note<'v>(
    builder: Builder,
    positional: Positional<'v>,
    named: Named<'v>,
    evaluator: &mut Evaluator<'v, '_, '_>,
) -> anyhow::Result<Value<'v>> {
    let collector = evaluator
        .extra
        .and_then(|extra| extra.downcast_ref::<Collector>())
        .ok_or_else(|| anyhow::anyhow!("the collector is not set"))?;
    let parameters = builder.parameters();
    if positional.items.len() > builder.positional() {
        anyhow::bail!(
            "{}() takes {} argument{} without a name, got {}; name the others",
            builder.name(),
            builder.positional(),
            if builder.positional() == 1 { "" } else { "s" },
            positional.items.len(),
        );
    }
    let mut arguments = Vec::new();
    for (position, value) in positional.items.iter().enumerate() {
        arguments.push(Argument {
            name: parameters[position].to_owned(),
            position: Some(position),
            value: datum(*value, 0),
        });
    }
    for (name, value) in &named {
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

// One builder a line or two: what they have in common is `note`.
#[starlark_module]
#[rustfmt::skip]
pub(super) fn builders(globals: &mut GlobalsBuilder) {
    fn cell<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Cell, a, k, eval)
    }
    fn machine<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Machine, a, k, eval)
    }
    fn package<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Package, a, k, eval)
    }
    fn job<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Job, a, k, eval)
    }
    fn sql_cluster<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::SqlCluster, a, k, eval)
    }
    fn check<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Check, a, k, eval)
    }
    fn tcp<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Tcp, a, k, eval)
    }
    fn http<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Http, a, k, eval)
    }
    fn sql<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Sql, a, k, eval)
    }
    fn command<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Command, a, k, eval)
    }
    fn tasks<'v>(#[starlark(args)] a: Positional<'v>, #[starlark(kwargs)] k: Named<'v>, eval: &mut Evaluator<'v, '_, '_>) -> anyhow::Result<Value<'v>> {
        note(Builder::Tasks, a, k, eval)
    }
}
