use serde_json::json;

use super::*;

fn holds(matcher: Value, seen: Value) -> bool {
    let matcher = Matcher::parse(&matcher).unwrap();
    let tested = matcher.test(&seen);
    assert_eq!(tested.is_ok(), matcher.holds(&seen));
    tested.is_ok()
}

#[test]
fn every_operator_says_yes_and_no() {
    // Matcher, what it accepts, what it refuses.
    let table = [
        (json!(200), json!(200.0), json!(201)),
        (json!("a"), json!("a"), json!("ab")),
        (
            json!({"equals": {"a": 1}}),
            json!({"a": 1}),
            json!({"a": 2}),
        ),
        (json!({"contains": "el"}), json!("hello"), json!("halo")),
        (json!({"contains": "a"}), json!(["a", "b"]), json!(["ab"])),
        (json!({"prefix": "he"}), json!("hello"), json!("ahe")),
        (json!({"suffix": "lo"}), json!("hello"), json!("lol")),
        (json!({"regex": "^h.*o$"}), json!("hello"), json!("hell")),
        (json!({"less": 5}), json!("4.5\n"), json!(5)),
        (json!({"at_most": 5}), json!(5), json!(5.1)),
        (json!({"greater": 5}), json!(6), json!("five")),
        (json!({"at_least": 5}), json!(5), json!([5])),
        (
            json!({"version": ">=1.2, <2 || 3.0.0"}),
            json!("v1.10.3"),
            json!("2.0.0"),
        ),
        (
            json!({"version": "!=1.0.0"}),
            json!(["1.0.1"]),
            json!(["1.0.1", "1.0.0"]),
        ),
        (json!({"length": 3}), json!("abc"), json!([1, 2])),
        (json!({"length": {"less": 2}}), json!([1]), json!(7)),
        (
            json!({"has": ["a", {"prefix": "b"}]}),
            json!("x\nbc\na\n"),
            json!(["a"]),
        ),
        (
            json!({"has": ["a", "a"]}),
            json!(["a", "b", "a"]),
            json!(["a", "b"]),
        ),
        (
            json!({"only": ["a", {"prefix": "a"}]}),
            json!(["ab", "a"]),
            json!(["a", "a", "a"]),
        ),
        (
            json!({"each": {"greater": 1}}),
            json!([2, 3]),
            json!([2, 1]),
        ),
        (
            json!({"key": {"suffix": "x"}}),
            json!({"ax": 1}),
            json!({"a": 1}),
        ),
        (
            json!({"entries": {"a": 1}}),
            json!({"a": 1, "b": 2}),
            json!({"b": 1}),
        ),
        (
            json!({"lines": ["ok", "/^a.c$/", "!bad"]}),
            json!("abc\nall ok"),
            json!("abc\nok\nbad"),
        ),
        (
            json!({"json": {"a.0.b": 7, "a.#": 1, "a.#.b": [7]}}),
            json!(r#"{"a":[{"b":7}]}"#),
            json!("{}"),
        ),
        (
            json!({"all": [{"greater": 1}, {"less": 3}]}),
            json!(2),
            json!(3),
        ),
        (json!({"any": [1, 2]}), json!(2), json!(3)),
        (json!({"not": {"contains": "a"}}), json!("b"), json!("a")),
    ];
    let mut used: std::collections::BTreeSet<String> = Default::default();
    for (matcher, yes, no) in table {
        used.extend(
            matcher
                .as_object()
                .into_iter()
                .flat_map(|all| all.keys().cloned()),
        );
        assert!(
            holds(matcher.clone(), yes.clone()),
            "{matcher} refuses {yes}"
        );
        assert!(
            !holds(matcher.clone(), no.clone()),
            "{matcher} accepts {no}"
        );
    }
    let known = homeostat_model::library::operators().iter();
    assert_eq!(
        used,
        known.map(|operator| operator.name.to_owned()).collect()
    );
}

#[test]
fn a_pairing_is_found_when_the_greedy_one_fails() {
    let matcher = json!({"only": [{"prefix": "a"}, "ab", {"suffix": "c"}]});
    assert!(holds(matcher.clone(), json!(["ab", "ac", "bc"])));
    assert!(!holds(matcher, json!(["ab", "ac", "bd"])));
}

#[test]
fn texts_and_numbers_meet_and_nothing_else_does() {
    assert!(holds(json!(1), json!("1.0")) && holds(json!("1"), json!(1)));
    assert!(!holds(json!(true), json!("true")) && !holds(json!("null"), json!(null)));
}

#[test]
fn bad_matchers_say_why() {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!({ "not": deep });
    }
    let bad = [
        json!({"equal": 1}),
        json!({}),
        json!({"less": 1, "greater": 0}),
        json!({"less": "x"}),
        json!({"regex": "("}),
        json!({"regex": "(a{1000}){1000}"}),
        json!({"version": "newest"}),
        json!({"lines": ["/(/"]}),
        json!({"json": {"a.#(b==1)": 1}}),
        json!({"all": 7}),
        deep,
    ];
    let why: Vec<_> = bad
        .iter()
        .map(|bad| Matcher::parse(bad).unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(why.join("\n"));
}

#[test]
fn what_is_amiss_is_said() {
    let amiss =
        |matcher: Value, seen: Value| Matcher::parse(&matcher).unwrap().test(&seen).unwrap_err();
    let all = [
        amiss(json!("0644"), json!("0600")),
        amiss(json!({"lines": ["a", "!b", "c"]}), json!("a\nxbx")),
        amiss(
            json!({"json": {"a.b": 1, "c": {"less": 3}}}),
            json!("{\"a\":{},\"c\":5}"),
        ),
        amiss(json!({"json": {"a": 1}}), json!("<html>")),
        amiss(json!({"all": [{"less": 9}, {"length": 3}]}), json!("7")),
        amiss(json!("x"), json!("y".repeat(2000))),
    ];
    insta::assert_snapshot!(all.join("\n"));
}
