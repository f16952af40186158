//! The load's own small HTTP service: what was measured, and the knob for the rate.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::Load;
use super::meter::Report;

pub fn routes(load: Arc<Load>) -> Router {
    Router::new()
        .route("/report", get(report))
        .route("/rate", post(rate))
        .with_state(load)
}

async fn report(State(load): State<Arc<Load>>) -> Json<Report> {
    Json(load.report())
}

#[derive(Deserialize)]
struct NewRate {
    per_second: String,
}

async fn rate(State(load): State<Arc<Load>>, Query(new): Query<NewRate>) -> (StatusCode, String) {
    match new.per_second.parse() {
        Ok(rate) => {
            load.set_rate(rate);
            (StatusCode::OK, format!("{} per second\n", new.per_second))
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}
