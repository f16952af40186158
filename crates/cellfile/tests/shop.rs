//! The example that people read first must load, wherever it is and whatever was built.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use homeostat_model::{CheckTarget, PackageSource, ProbeSpec, ServiceKind};

#[test]
fn the_example_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    let cell =
        homeostat_cellfile::load(&folder.join("cell.star")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cell.name.as_str(), "shop");
    assert_eq!(cell.machines.len(), 3);
    let services: Vec<&str> = cell
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(services, ["shop-db", "shop-web", "shop-load"]);
    let checks: Vec<(&str, String)> = cell
        .checks
        .iter()
        .map(|check| {
            let after: Vec<&str> = check.after.iter().map(|after| after.as_str()).collect();
            (check.name.as_str(), after.join(" "))
        })
        .collect();
    insta::assert_debug_snapshot!(checks, @r#"
    [
        (
            "shop-db/tasks",
            "",
        ),
        (
            "shop-web/tasks",
            "",
        ),
        (
            "shop-load/tasks",
            "",
        ),
        (
            "shop-db/answers",
            "shop-db/tasks",
        ),
        (
            "shop-web/healthz",
            "shop-web/tasks shop-db/answers",
        ),
        (
            "shop-load/running",
            "shop-load/tasks",
        ),
        (
            "orders-kept",
            "shop-web/healthz shop-load/running",
        ),
    ]
    "#);
    let kept = cell
        .checks
        .iter()
        .find(|check| check.name.as_str() == "orders-kept")
        .unwrap();
    assert_eq!(kept.about, CheckTarget::Cell);
    let healthz = cell
        .checks
        .iter()
        .find(|check| check.name.as_str() == "shop-web/healthz")
        .unwrap();
    assert!(matches!(&healthz.probe, ProbeSpec::Http(http) if http.at == "${endpoint.shop-web}"));
    let ServiceKind::Sql(db) = &cell.services[0].kind else {
        panic!("shop-db is not SQL")
    };
    assert_eq!((db.members, db.database.as_str()), (3, "shop"));
    let PackageSource::Path { candidates } = &cell.packages[0].source else {
        panic!("not a path")
    };
    let root = folder.join("../..").canonicalize().unwrap();
    assert_eq!(
        *candidates,
        [
            root.join("target/release/shop"),
            root.join("target/debug/shop")
        ]
    );
}
