//! `groundling connect`: creates or finds a project of Label Studio, and connects it to groundling.
//!
//! Each step first looks at what exists, so that the command can be repeated: it completes what is missing, and changes
//! nothing else.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use secrecy::ExposeSecret;

use super::image_files::image_files;
use super::selftest::scenes;
use super::{print_result, print_status, project, setup};
use crate::config::ConnectArgs;
use crate::label_studio::api::{
    Api, ApiError, Authentication, Backend, BackendSettings, ImageFile, Project,
};
use crate::labeling::{LabelingConfig, new_config};

/// The backend's name in a project.
const BACKEND_TITLE: &str = "groundling";
/// The labels of a new project, until its team has its own.
const DEFAULT_LABELS: &str = "person, car, dog";
/// What the demo models know.
const DEMO_LABELS: &str =
    "circle, star, square, triangle, rectangle, ring, heart, moon, diamond, hexagon, cross, arrow";
/// Pause between attempts while a server starts.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Images per upload.
const UPLOAD: usize = 20;

/// Label Studio stores a model before it refuses the webhook that it adds to each.
const WEBHOOK_REFUSED: &str = "note: Label Studio refused a webhook to groundling, whose address is private; groundling needs none (SSRF_PROTECTION_ENABLED=false would allow it)";

/// Connects a project, and checks the connection by a prediction.
///
/// # Errors
/// If a step fails. The steps before it stay done.
pub fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    setup::runtime()?.block_on(project::until_interrupted(connect(args)))
}

async fn connect(args: &ConnectArgs) -> anyhow::Result<()> {
    let wanted_config = wanted_config(args)?;
    let images = images(args)?;
    let studio = setup::label_studio(&args.label_studio)?;
    let base = studio.base().map(str::to_owned);
    let base = base.context("LABEL_STUDIO_HOST is not set; set it to Label Studio's address as seen from this machine, such as http://localhost:8080")?;
    if studio.credentials().is_none() {
        bail!("{}", studio.refusal_hint());
    }
    let api = Api::new(studio)?;
    let patience = Patience::new(Duration::from_secs(args.wait));

    let version = patience
        .until_ok("Label Studio", ApiError::is_transient, || api.version())
        .await?;
    let user = api.whoami().await?;
    print_result(format_args!(
        "Label Studio {version} at {base}, as {}",
        user.email
    ));
    let project = find_or_create(&api, args, &wanted_config).await?;
    upload(&api, &project, &images).await?;
    let backend = connect_backend(&api, args, &project, &patience).await?;
    check(&api, &project, &backend, &patience).await?;
    let address = args.public_url.as_deref().unwrap_or(&base);
    let address = address.trim_end_matches('/');
    print_result(format_args!("open {address}/projects/{}/data", project.id));
    Ok(())
}

/// The labeling config for the project, if the command line says anything about it.
fn wanted_config(args: &ConnectArgs) -> anyhow::Result<WantedConfig> {
    if let Some(path) = &args.labeling_config {
        let xml = fs::read_to_string(path)
            .with_context(|| format!("cannot read the labeling config {}", path.display()))?;
        LabelingConfig::parse(&xml).with_context(|| path.display().to_string())?;
        return Ok(WantedConfig::Always(xml));
    }
    let labels = args.labels.as_deref().unwrap_or(match args.demo {
        true => DEMO_LABELS,
        false => DEFAULT_LABELS,
    });
    let labels: Vec<&str> = labels.split(',').map(str::trim).collect();
    if labels.iter().any(|label| label.is_empty()) {
        bail!("--labels has an empty label: separate labels by commas, such as \"dog, cat\"");
    }
    Ok(WantedConfig::IfNew(new_config(&labels)))
}

/// When a labeling config is used.
enum WantedConfig {
    /// In place of the project's own.
    Always(String),
    /// If the project is new, or its config is empty.
    IfNew(String),
}

impl WantedConfig {
    fn xml(&self) -> &str {
        match self {
            Self::Always(xml) | Self::IfNew(xml) => xml,
        }
    }
}

fn images(args: &ConnectArgs) -> anyhow::Result<Vec<ImageFile>> {
    if args.demo {
        let files = scenes::image_files();
        return Ok(files
            .map(|(name, bytes)| ImageFile {
                name: name.to_owned(),
                bytes: bytes.to_vec(),
            })
            .collect());
    }
    let files = image_files(&args.images)?.into_iter();
    files
        .map(|path| {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().unwrap_or(path.as_os_str());
            let name = name.to_string_lossy().into_owned();
            Ok(ImageFile { name, bytes })
        })
        .collect()
}

async fn find_or_create(
    api: &Api,
    args: &ConnectArgs,
    wanted: &WantedConfig,
) -> anyhow::Result<Project> {
    let found = match args.project {
        Some(number) => Some(
            api.project(number)
                .await
                .with_context(|| format!("cannot read project {number}"))?,
        ),
        None => api.project_titled(&args.title).await?,
    };
    let Some(mut project) = found else {
        let project = api.create_project(&args.title, wanted.xml()).await?;
        print_result(format_args!("{} was created", name(&project)));
        return Ok(project);
    };
    let is_replaced = match wanted {
        WantedConfig::Always(xml) => xml.trim() != project.label_config.trim(),
        WantedConfig::IfNew(_) => is_empty(&project.label_config),
    };
    if is_replaced {
        api.set_label_config(project.id, wanted.xml())
            .await
            .context("the labeling config was not changed")?;
        wanted.xml().clone_into(&mut project.label_config);
        print_result(format_args!(
            "{} exists; its labeling config was replaced",
            name(&project)
        ));
    } else {
        print_result(format_args!("{} exists", name(&project)));
    }
    // a project that groundling cannot serve is noticed before it is connected
    let config = LabelingConfig::parse(&project.label_config)
        .with_context(|| format!("{}: its labeling config", name(&project)))?;
    if let Err(error) = config.image().and_then(|image| config.text_area(image)) {
        print_result(format_args!(
            "note: {error}; without it only batches and smart tools work"
        ));
    }
    Ok(project)
}

fn name(project: &Project) -> String {
    format!("project {} {:?}", project.id, project.title)
}

/// Whether a labeling config has no tags, as that of a new project.
fn is_empty(config: &str) -> bool {
    let text: String = config.chars().filter(|c| !c.is_whitespace()).collect();
    matches!(text.as_str(), "" | "<View></View>" | "<View/>")
}

async fn upload(api: &Api, project: &Project, images: &[ImageFile]) -> anyhow::Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    let tasks = api.tasks(project.id, 1, 1).await?.total;
    if tasks > 0 {
        print_result(format_args!(
            "no image was uploaded, because the project has {tasks} tasks"
        ));
        return Ok(());
    }
    for part in images.chunks(UPLOAD) {
        api.import_images(project.id, part)
            .await
            .context("the images were not uploaded")?;
    }
    print_result(format_args!("{} images were uploaded", images.len()));
    Ok(())
}

async fn connect_backend(
    api: &Api,
    args: &ConnectArgs,
    project: &Project,
    patience: &Patience,
) -> anyhow::Result<Backend> {
    let authentication = match (&args.basic_auth_user, &args.basic_auth_pass) {
        (Some(user), Some(password)) => Authentication::Basic {
            user,
            password: password.expose_secret(),
        },
        (None, None) => Authentication::None,
        _ => bail!("BASIC_AUTH_USER and BASIC_AUTH_PASS must both be set, or neither"),
    };
    let url = args.url.trim().trim_end_matches('/');
    let backends = api.backends(project.id).await?;
    let same = |backend: &&Backend| backend.url.trim_end_matches('/') == url;
    let existing = backends.iter().find(same);
    for other in backends.iter().filter(|backend| !same(backend)) {
        print_result(format_args!(
            "note: the project also has the backend {:?} at {}; Label Studio sends batches to the first one",
            other.title, other.url
        ));
    }
    let settings = BackendSettings {
        project: project.id,
        // the project may refer to its backend by the title
        title: existing.map_or(BACKEND_TITLE, |backend| backend.title.as_str()),
        url,
        is_interactive: true,
        authentication,
    };
    // Label Studio is told even if nothing changes: it then calls the backend again
    let connect = || async {
        match existing {
            Some(backend) => api.update_backend(backend.id, &settings).await,
            None => api.connect_backend(&settings).await,
        }
    };
    let may_start =
        |error: &ApiError| matches!(error, ApiError::Status { .. }) && !error.is_blocked_address();
    let backend = match patience.until_ok("groundling", may_start, connect).await {
        Err(error) if error.is_blocked_address() && existing.is_none() => {
            let stored = api.backends(project.id).await?;
            match stored.iter().find(same) {
                Some(stored) => {
                    print_result(WEBHOOK_REFUSED);
                    api.update_backend(stored.id, &settings).await
                }
                None => Err(error),
            }
        }
        result => result,
    };
    let backend = backend.map_err(|error| match error {
        error if error.is_blocked_address() => anyhow::anyhow!(
            "Label Studio refuses to call {url}, because its address is private: set ML_BLOCK_LOCAL_IP=false in the environment of Label Studio's server"
        ),
        error => anyhow::Error::new(error).context(format!(
            "Label Studio cannot use {url}: it must be groundling's address as seen from Label Studio's server (--url), and groundling must listen on an address that it can reach (BIND_ADDRESS)"
        )),
    })?;
    print_result(format_args!(
        "the backend {url} {}, with interactive preannotations; its model version is {:?}",
        match existing {
            Some(_) => "was connected already",
            None => "is connected",
        },
        backend.model_version.as_deref().unwrap_or_default()
    ));
    Ok(backend)
}

/// Lets Label Studio request predictions for a task, which go the whole way: the image, the models and the regions.
async fn check(
    api: &Api,
    project: &Project,
    backend: &Backend,
    patience: &Patience,
) -> anyhow::Result<()> {
    if api.tasks(project.id, 1, 1).await?.total == 0 {
        print_result("the project has no task, so no prediction was requested: import images");
        return Ok(());
    }
    let is_loading = |error: &ApiError| matches!(error, ApiError::Status { .. });
    let test = || api.test_backend(backend.id);
    let test = patience.until_ok("the models", is_loading, test).await;
    let test = test.context("groundling did not answer Label Studio's request for a prediction; its log says why. The models may still be loading: `groundling health` on its machine")?;
    let prediction = test.response.as_deref().and_then(<[_]>::first);
    let prediction = prediction.context("the answer to a request for a prediction was empty")?;
    if let Some(error) = &prediction.error {
        bail!("the prediction for task {} failed: {error}", test.task.id);
    }
    let regions = prediction.result.iter();
    let found = regions.filter(|region| region.get("score").is_some());
    print_result(format_args!(
        "a prediction for task {} has {} regions",
        test.task.id,
        found.count()
    ));
    Ok(())
}

/// Repeats calls to servers that are starting, up to a deadline.
struct Patience {
    deadline: Instant,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        Self { deadline }
    }

    /// Repeats a call while it fails and `may_succeed` later.
    async fn until_ok<T, F: Future<Output = Result<T, ApiError>>>(
        &self,
        who: &str,
        may_succeed: impl Fn(&ApiError) -> bool,
        call: impl Fn() -> F,
    ) -> Result<T, ApiError> {
        let mut is_first = true;
        loop {
            match call().await {
                Err(error) if may_succeed(&error) && Instant::now() < self.deadline => {
                    if is_first {
                        print_status(format_args!("waiting for {who}: {error}"));
                    }
                    is_first = false;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_without_tags_is_empty() {
        for empty in ["", "<View></View>", "<View>\n</View>\n", "<View />"] {
            assert!(is_empty(empty), "{empty:?}");
        }
        assert!(!is_empty("<View><Image name='i' value='$i'/></View>"));
    }
}
