//! The images of tasks: known by what they are, fetched and decoded only where somebody needs their pixels.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use image::RgbImage;
use ring::digest::{SHA256, digest};
use secrecy::ExposeSecret;

use super::decode::{DecodeError, decode, dimensions};
use super::fetch::{Answer, Validators};
use super::hosts::Hosts;
use super::{Fetcher, ImageRequest, Location, MediaError};
use crate::budget::{Budget, Purpose, Reservation};
use crate::geometry::ImageSize;
use crate::store::{Kept, Usage};

/// SHA-256 of an image file's bytes: what was computed of it is kept under this.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(sum)
    }

    /// The sum itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// How many images are fetched, decoded and held at a time.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// Fetched at a time, from all hosts.
    pub fetches: usize,
    /// Fetched at a time from one host: one that does not answer must not keep others waiting.
    pub fetches_of_host: usize,
    /// Bytes of decoded images that are kept for the next request.
    pub kept_bytes: u64,
    /// How long what lies at a URL is believed to be what was there before, without asking.
    pub fresh: Duration,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            fetches: 32,
            fetches_of_host: 6,
            kept_bytes: 64 << 20,
            fresh: Duration::from_secs(60),
        }
    }
}

/// Gets the images of tasks; clones share what they know.
#[derive(Debug, Clone)]
pub struct Images {
    fetcher: Fetcher,
    limits: ImageLimits,
    places: Kept<Place, Arc<Found>>,
    pixels: Kept<Digest, Pixels>,
    hosts: Arc<Hosts>,
}

/// How long the pixels of an image may wait for memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);

/// Where an image was looked for, and by whom: a cloud URI means what it means to its task's storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    label_studio: Option<String>,
    task: Option<u64>,
    url: String,
    /// User and password: what one may see another may not.
    login: Option<Digest>,
}

/// What lay at a place.
#[derive(Debug)]
struct Found {
    digest: Digest,
    size: ImageSize,
    validators: Validators,
    /// When it was last known to be so.
    seen: Mutex<Instant>,
}

/// Decoded pixels, and the memory that they take.
#[derive(Debug, Clone)]
pub struct Pixels {
    image: Arc<RgbImage>,
    /// What is kept for the next request counts there, and takes nothing from what requests share.
    _memory: Option<Arc<Reservation>>,
}

impl std::ops::Deref for Pixels {
    type Target = RgbImage;

    fn deref(&self) -> &RgbImage {
        &self.image
    }
}

/// A task's image: what it is, and the way to its pixels.
#[derive(Debug, Clone)]
pub struct Picture<'a> {
    images: &'a Images,
    request: ImageRequest<'a>,
    /// Of its bytes.
    pub digest: Digest,
    /// Upright.
    pub size: ImageSize,
    /// Decoded by looking it up.
    pixels: Option<Pixels>,
}

impl Picture<'_> {
    /// Its pixels; fetched and decoded again if they are not at hand.
    ///
    /// # Errors
    /// See [`MediaError`]; also if another image lies there by now.
    pub async fn pixels(&self) -> Result<Pixels, MediaError> {
        if let Some(pixels) = &self.pixels {
            return Ok(pixels.clone());
        }
        if let Some(pixels) = self.images.pixels.get(&self.digest).await {
            return Ok(pixels);
        }
        let location = self.images.fetcher.locate(self.request)?;
        let fetched = self.images.fetch(location, self.request, None).await?;
        let Fetched::New { digest, pixels, .. } = fetched else {
            return Err(self.changed());
        };
        if digest != self.digest {
            return Err(self.changed());
        }
        Ok(pixels)
    }

    fn changed(&self) -> MediaError {
        MediaError::Changed(self.request.value.chars().take(200).collect())
    }
}

/// What came of fetching.
enum Fetched {
    /// It is as it was.
    Same,
    /// Its bytes, decoded.
    New {
        digest: Digest,
        pixels: Pixels,
        validators: Validators,
    },
}

impl Images {
    /// For images that `fetcher` gets.
    pub fn new(fetcher: Fetcher, limits: ImageLimits) -> Self {
        let weigh = |pixels: &Pixels| pixels.image.as_raw().len();
        Self {
            fetcher,
            limits,
            places: Kept::new(PLACES_BYTES, UNUSED, |_| PLACE_BYTES),
            pixels: Kept::new(limits.kept_bytes, UNUSED, weigh),
            hosts: Arc::new(Hosts::new(limits)),
        }
    }

    /// What a task shows. If nothing says that it has changed, it is neither fetched nor decoded.
    ///
    /// # Errors
    /// See [`MediaError`].
    pub async fn look_up<'a>(
        &'a self,
        request: ImageRequest<'a>,
    ) -> Result<Picture<'a>, MediaError> {
        let picture = |found: &Found, pixels| Picture {
            images: self,
            request,
            digest: found.digest,
            size: found.size,
            pixels,
        };
        let location = self.fetcher.locate(request)?;
        if let Location::Inline(_) = location {
            // it is its own place, and too long for a key
            let Fetched::New { digest, pixels, .. } = self.fetch(location, request, None).await?
            else {
                return Err(MediaError::Changed("the data URI".to_owned()));
            };
            return Ok(Picture {
                images: self,
                request,
                digest,
                size: ImageSize::of(&pixels),
                pixels: Some(pixels),
            });
        }
        let place = Place {
            label_studio: request.label_studio.base().map(str::to_owned),
            task: request.task,
            url: request.value.to_owned(),
            login: request.login.map(|(user, password)| {
                Digest::of(format!("{user}\0{}", password.expose_secret()).as_bytes())
            }),
        };
        let known = self.places.get(&place).await;
        if let Some(found) = &known
            && !matches!(location, Location::File { .. })
            && found.age() < self.limits.fresh
        {
            return Ok(picture(found, None));
        }
        let validators = known.as_ref().map(|found| &found.validators);
        match self.fetch(location, request, validators).await? {
            Fetched::Same => match known {
                Some(found) => {
                    found.see();
                    Ok(picture(&found, None))
                }
                None => Err(MediaError::Changed(place.url)),
            },
            Fetched::New {
                digest,
                pixels,
                validators,
            } => {
                let found = Arc::new(Found {
                    digest,
                    size: ImageSize::of(&pixels),
                    validators,
                    seen: Mutex::new(Instant::now()),
                });
                self.places.keep(place, found.clone()).await;
                Ok(picture(&found, Some(pixels)))
            }
        }
    }

    /// Fetches and decodes, unless the validators say that nothing has changed.
    async fn fetch(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<Fetched, MediaError> {
        let name = location.describe(request.label_studio);
        let turn = self.hosts.enter(location.host()).await;
        let answer = self.fetcher.bytes(location, request, known).await?;
        drop(turn);
        let Answer::File(file) = answer else {
            return Ok(Fetched::Same);
        };
        let max_pixels = self.fetcher.config.max_pixels;
        // a file says how large its picture is before it is decoded
        let decoded = dimensions(&file.bytes).map_or(0, |(width, height)| {
            3 * (width as usize)
                .saturating_mul(height as usize)
                .min(max_pixels)
        });
        let budget = &self.fetcher.budget;
        let memory = budget.reserve(Purpose::Pixels, decoded, MEMORY_PATIENCE);
        let memory = match memory.await {
            Ok(memory) => memory,
            Err(source) => return Err(MediaError::Memory { url: name, source }),
        };
        let validators = file.validators.clone();
        // decoding computes: not on the async threads
        let read = move || {
            let digest = Digest::of(&file.bytes);
            decode(&file.bytes, max_pixels).map(|image| (digest, image))
        };
        let decoded = tokio::task::spawn_blocking(read).await;
        let (digest, image) = match decoded {
            Ok(decoded) => decoded.map_err(|source| MediaError::Decode { url: name, source })?,
            Err(_) => {
                let source = DecodeError::Panicked;
                return Err(MediaError::Decode { url: name, source });
            }
        };
        let image = Arc::new(image);
        let kept = Pixels {
            image: image.clone(),
            _memory: None,
        };
        self.pixels.keep(digest, kept).await;
        Ok(Fetched::New {
            digest,
            pixels: Pixels {
                image,
                _memory: Some(Arc::new(memory)),
            },
            validators,
        })
    }

    /// Lets go of what is not to be kept.
    pub async fn tidy(&self) {
        self.places.tidy().await;
        self.pixels.tidy().await;
    }

    /// The memory that requests share.
    pub fn budget(&self) -> &Budget {
        &self.fetcher.budget
    }

    /// What is kept: of places, of pixels.
    pub fn usage(&self) -> [(&'static str, Usage); 2] {
        [
            ("places", self.places.usage()),
            ("pixels", self.pixels.usage()),
        ]
    }
}

/// About the bytes of a place.
const PLACE_BYTES: usize = 512;
const PLACES_BYTES: u64 = 8 << 20;
const UNUSED: Duration = Duration::from_secs(3600);

impl Found {
    fn age(&self) -> Duration {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    fn see(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;

    use super::*;
    use crate::label_studio::LabelStudio;
    use crate::media::FetcherConfig;
    use crate::media::guard::AllowedHosts;

    fn png(shade: u8) -> Vec<u8> {
        let picture = RgbImage::from_pixel(5, 3, image::Rgb([shade; 3]));
        let mut png = std::io::Cursor::new(vec![]);
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    }

    /// How often the picture was sent, and how often it was said to be the same.
    #[derive(Debug, Default)]
    struct Host {
        sent: AtomicUsize,
        same: AtomicUsize,
        shade: AtomicUsize,
    }

    async fn picture(State(host): State<Arc<Host>>, headers: HeaderMap) -> Response {
        let shade = host.shade.load(Ordering::SeqCst);
        let etag = format!("\"{shade}\"");
        if headers
            .get("if-none-match")
            .is_some_and(|known| *known == *etag)
        {
            host.same.fetch_add(1, Ordering::SeqCst);
            return StatusCode::NOT_MODIFIED.into_response();
        }
        host.sent.fetch_add(1, Ordering::SeqCst);
        ([("etag", etag)], png(shade as u8)).into_response()
    }

    async fn start() -> (Arc<Host>, String) {
        let host = Arc::new(Host::default());
        let app = Router::new()
            .route("/{name}", get(picture))
            .with_state(host.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (host, url)
    }

    fn images(limits: ImageLimits, local_files: Option<std::path::PathBuf>) -> Images {
        let config = FetcherConfig {
            timeout: Duration::from_secs(20),
            max_bytes: 1 << 20,
            max_pixels: 1 << 20,
            allowed_hosts: AllowedHosts::parse("127.0.0.1"),
            local_files,
        };
        let fetcher = Fetcher::new(config, Budget::new(64 << 20)).unwrap();
        Images::new(fetcher, limits)
    }

    fn request<'a>(value: &'a str, label_studio: &'a LabelStudio) -> ImageRequest<'a> {
        ImageRequest {
            value,
            label_studio,
            task: Some(1),
            login: None,
        }
    }

    #[tokio::test]
    async fn an_image_is_fetched_once_and_then_asked_after() {
        let (host, url) = start().await;
        let (a, b) = (format!("{url}/a.png"), format!("{url}/b.png"));
        let studio = LabelStudio::default();
        let sent = || host.sent.load(Ordering::SeqCst);
        let same = || host.same.load(Ordering::SeqCst);

        let trusting = images(ImageLimits::default(), None);
        let first = trusting.look_up(request(&a, &studio)).await.unwrap();
        let again = trusting.look_up(request(&a, &studio)).await.unwrap();
        assert_eq!((first.digest, sent(), same()), (again.digest, 1, 0));
        assert_eq!((again.size.width, again.size.height), (5, 3));
        // its pixels are at hand, without another request
        assert_eq!(again.pixels().await.unwrap().get_pixel(0, 0).0, [0; 3]);
        // the same picture at another address
        let other = trusting.look_up(request(&b, &studio)).await.unwrap();
        assert_eq!((other.digest, sent()), (first.digest, 2));

        let careful = images(
            ImageLimits {
                fresh: Duration::ZERO,
                kept_bytes: 0,
                ..ImageLimits::default()
            },
            None,
        );
        let first = careful.look_up(request(&a, &studio)).await.unwrap();
        let again = careful.look_up(request(&a, &studio)).await.unwrap();
        assert_eq!((first.digest, sent(), same()), (again.digest, 3, 1));
        // pixels that are not kept are fetched
        assert_eq!(again.pixels().await.unwrap().get_pixel(0, 0).0, [0; 3]);
        assert_eq!(sent(), 4);
        host.shade.store(9, Ordering::SeqCst);
        let error = again.pixels().await.unwrap_err();
        assert!(matches!(error, MediaError::Changed(_)), "{error}");
        let changed = careful.look_up(request(&a, &studio)).await.unwrap();
        assert_ne!(changed.digest, first.digest);
        assert_eq!(changed.pixels().await.unwrap().get_pixel(0, 0).0, [9; 3]);
    }

    #[tokio::test]
    async fn a_local_file_that_changes_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.png");
        std::fs::write(&file, png(1)).unwrap();
        let images = images(ImageLimits::default(), Some(folder.path().to_owned()));
        let studio = LabelStudio::default();
        let value = "/data/local-files/?d=a.png";
        let first = images.look_up(request(value, &studio)).await.unwrap();
        let again = images.look_up(request(value, &studio)).await.unwrap();
        assert_eq!(first.digest, again.digest);
        assert!(again.pixels.is_none(), "it was read again");
        std::fs::write(&file, png(2)).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        let open = std::fs::File::options().write(true).open(&file).unwrap();
        open.set_modified(later).unwrap();
        let changed = images.look_up(request(value, &studio)).await.unwrap();
        assert_ne!(changed.digest, first.digest);
    }
}
