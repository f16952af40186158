//! What the variables of a launch stand for, as far as only the controller knows it: endpoints and secrets.

use homeostat_api::Refusal;
use homeostat_model::{MachineName, ServiceName, Template, Variable};
use homeostat_store::convenience;

use crate::core::Core;
use crate::keys;

/// What a variable stands for on `machine`, for `service`; `None`: its agent knows. Secrets may contain endpoints.
pub(crate) async fn resolve(
    core: &Core,
    service: &ServiceName,
    machine: &MachineName,
    variable: &Variable,
) -> Result<Option<String>, Refusal> {
    match variable {
        Variable::Endpoint(of) => endpoint_on(core, of, machine).map(Some),
        Variable::Secret { service: of, name } => {
            let needs = core
                .service(service)
                .is_some_and(|spec| spec.needs.contains(of));
            if of != service && !needs {
                return Err(Refusal::bad_request(format!(
                    "{service} does not need {of} and may not see its secrets"
                )));
            }
            secret(core, of, name, machine).await.map(Some)
        }
        Variable::DirOf(task) => Err(Refusal::bad_request(format!(
            "{variable}: the folder of {task} is nobody's business but its own"
        ))),
        Variable::Address
        | Variable::Port(_)
        | Variable::Dir
        | Variable::Task
        | Variable::Machine
        | Variable::Package => Ok(None),
    }
}

/// Where `machine` reaches a service.
pub(crate) fn endpoint_on(
    core: &Core,
    service: &ServiceName,
    machine: &MachineName,
) -> Result<String, Refusal> {
    let machine = core
        .identity
        .machine(machine)
        .ok_or_else(|| Refusal::not_found(format!("{machine} is not a machine of this cell")))?;
    let port = core
        .endpoint_port(service)
        .ok_or_else(|| Refusal::not_found(format!("{service} is not a service of this cell")))?;
    Ok(format!("{}:{port}", machine.address))
}

/// A secret of a service as seen from a machine. It may name endpoints and nothing else.
pub(crate) async fn secret(
    core: &Core,
    service: &ServiceName,
    name: &str,
    machine: &MachineName,
) -> Result<String, Refusal> {
    let key = keys::own(service, &format!("secret/{name}"));
    let item = convenience::get(&*core.store, &key)
        .await
        .map_err(|error| Refusal::unknown(error.to_string()))?
        .ok_or_else(|| Refusal::not_now(format!("{service} has no secret '{name}' yet")))?;
    let text = String::from_utf8_lossy(&item.value).into_owned();
    let template = Template::parse(&text).map_err(|error| Refusal::internal(error.to_string()))?;
    template.render(|variable| match variable {
        Variable::Endpoint(of) => endpoint_on(core, of, machine),
        Variable::Address
        | Variable::Port(_)
        | Variable::Dir
        | Variable::DirOf(_)
        | Variable::Task
        | Variable::Machine
        | Variable::Package
        | Variable::Secret { .. } => Err(Refusal::internal(format!(
            "a secret may not contain {variable}"
        ))),
    })
}
