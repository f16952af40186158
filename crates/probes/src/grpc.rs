//! A gRPC server says that it serves, by the protocol `grpc.health.v1` that most servers have built in.

use hyper::Uri;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};
use crate::tcp::host_and_port;

const PATH: &str = "/grpc.health.v1.Health/Check";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcProbe {
    at: String,
    service: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum GrpcError {
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("cannot ask")]
    Ask(#[source] tonic::transport::Error),
    #[error("it answers {code:?}: {message}")]
    Refused { code: tonic::Code, message: String },
    #[error("{0}")]
    NotServing(&'static str),
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl GrpcProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let at = host_and_port(args, "at")?;
        if format!("http://{at}").parse::<Uri>().is_err() {
            return args.refuse("at", format!("'{at}' is not host:port"));
        }
        Ok(Self {
            at,
            service: args.text("service").unwrap_or_default().to_owned(),
        })
    }

    pub(crate) fn expected(&self) -> String {
        match self.service.as_str() {
            "" => format!("{} is SERVING", self.at),
            service => format!("{service} at {} is SERVING", self.at),
        }
    }
}

pub(crate) async fn look(probe: &GrpcProbe, within: Deadline) -> Result<String, GrpcError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", probe.at)).map_err(GrpcError::Ask)?;
    let channel = within
        .keep("connecting", endpoint.connect())
        .await?
        .map_err(GrpcError::Connect)?;
    let question = Question {
        service: probe.service.clone(),
    };
    let asking = async {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(GrpcError::Ask)?;
        let codec = ProstCodec::<Question, Answer>::default();
        let path = hyper::http::uri::PathAndQuery::from_static(PATH);
        client
            .unary(tonic::Request::new(question), path, codec)
            .await
            .map_err(|status| GrpcError::Refused {
                code: status.code(),
                message: crate::shown::head(status.message().as_bytes()),
            })
    };
    let answer = within.keep("waiting for an answer", asking).await??;
    match answer.into_inner().status {
        1 => Ok("SERVING".to_owned()),
        0 => Err(GrpcError::NotServing("UNKNOWN")),
        2 => Err(GrpcError::NotServing("NOT_SERVING")),
        3 => Err(GrpcError::NotServing("SERVICE_UNKNOWN")),
        _ => Err(GrpcError::NotServing(
            "a status that this program does not know",
        )),
    }
}
