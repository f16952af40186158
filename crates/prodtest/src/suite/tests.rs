#![allow(clippy::unwrap_used)]

use super::*;

fn check(name: &str, after: &[&str]) -> Check {
    Check {
        name: CheckName::new(name).unwrap(),
        after: after
            .iter()
            .map(|name| CheckName::new(*name).unwrap())
            .collect(),
        every: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        confirm: 2,
        target: None,
        fix: None,
    }
}

fn refusal(checks: Vec<Check>) -> String {
    Suite::new(checks).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_run_is_refused_with_reasons() {
    insta::assert_snapshot!(refusal(vec![]), @"the suite contains no check");
    insta::assert_snapshot!(refusal(vec![check("a", &[]), check("a", &[])]), @"check a is declared twice; give one of the two another name");
    insta::assert_snapshot!(refusal(vec![check("a", &["web/up"])]), @"check a comes after web/up, which is not in the suite");
    insta::assert_snapshot!(refusal(vec![check("a", &["a"])]), @"checks wait for each other in a circle: a after a");
    insta::assert_snapshot!(
        refusal(vec![check("x", &["c"]), check("a", &["b"]), check("b", &["c"]), check("c", &["a"]), check("y", &["a"])]),
        @"checks wait for each other in a circle: c after a after b after c"
    );
    insta::assert_snapshot!(refusal(vec![Check { confirm: 0, ..check("a", &[]) }]), @"check a has confirm = 0, so that nothing could make it fail; use 1 or more");
    insta::assert_snapshot!(refusal(vec![Check { every: Duration::ZERO, ..check("a", &[]) }]), @"check a has an interval below one millisecond");
}

#[test]
fn dependencies_come_first_and_count_once() {
    let suite = Suite::new(vec![
        check("top", &["left", "right", "left"]),
        check("right", &["base"]),
        check("left", &["base"]),
        check("base", &[]),
    ])
    .unwrap();
    for id in suite.ids() {
        assert!(suite.needs(id).iter().all(|need| *need < id));
        assert!(
            suite
                .needs(id)
                .iter()
                .all(|need| suite.dependents(*need).contains(&id))
        );
        assert_eq!(suite.id(suite.name(id)), Some(id));
    }
    let top = suite.id(&CheckName::new("top").unwrap()).unwrap();
    assert_eq!(suite.needs(top).len(), 2);
    assert_eq!(suite.id(&CheckName::new("nobody").unwrap()), None);
}
