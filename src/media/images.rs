//! The images of tasks. They are identified by the digest of their files, and are fetched and decoded only when their
//! pixels are needed.

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

/// SHA-256 of the bytes of an image file. It is the cache key for everything computed from the image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of a file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(sum)
    }

    /// The 32 bytes of the digest.
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

/// Limits for fetching and caching images.
#[derive(Debug, Clone, Copy)]
pub struct ImageLimits {
    /// Maximum number of concurrent fetches from all hosts.
    pub fetches: usize,
    /// Maximum number of concurrent fetches from one host, so that a host that does not answer does not block the
    /// others.
    pub fetches_of_host: usize,
    /// Bytes of decoded images that are cached for later requests.
    pub kept_bytes: u64,
    /// How long the image at a URL is assumed to be unchanged without asking its host.
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

/// Loads the images of tasks. Clones share the caches.
#[derive(Debug, Clone)]
pub struct Images {
    fetcher: Fetcher,
    limits: ImageLimits,
    places: Kept<Place, Arc<Found>>,
    pixels: Kept<Digest, Pixels>,
    hosts: Arc<Hosts>,
}

/// How long decoding waits for memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);

/// The cache key of an image lookup. It contains the task, because a cloud URI is resolved by the storage of the task's
/// project.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    label_studio: Option<String>,
    task: Option<u64>,
    url: String,
    /// Digest of the user name and password, because users may have different access rights.
    login: Option<Digest>,
}

/// The image that was found at a place.
#[derive(Debug)]
struct Found {
    digest: Digest,
    size: ImageSize,
    validators: Validators,
    /// When the image was last known to be unchanged.
    seen: Mutex<Instant>,
}

/// Decoded pixels with their memory reservation.
#[derive(Debug, Clone)]
pub struct Pixels {
    image: Arc<RgbImage>,
    /// `None` for the copy in the cache, which counts against `kept_bytes` and not against the budget of the requests.
    _memory: Option<Arc<Reservation>>,
}

impl std::ops::Deref for Pixels {
    type Target = RgbImage;

    fn deref(&self) -> &RgbImage {
        &self.image
    }
}

/// The image of a task: its identity and size, and access to its pixels.
#[derive(Debug, Clone)]
pub struct Picture<'a> {
    images: &'a Images,
    request: ImageRequest<'a>,
    /// The digest of its file.
    pub digest: Digest,
    /// The size in pixels, after the EXIF orientation was applied.
    pub size: ImageSize,
    /// The pixels, if the lookup decoded them.
    pixels: Option<Pixels>,
}

impl Picture<'_> {
    /// Returns the pixels. If they are not cached, the image is fetched and decoded again.
    ///
    /// # Errors
    /// See [`MediaError`]; also if the location has another image by now.
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

/// The result of a fetch.
enum Fetched {
    /// The image has not changed.
    Same,
    /// A new image, decoded.
    New {
        digest: Digest,
        pixels: Pixels,
        validators: Validators,
    },
}

impl Images {
    /// Loads images with `fetcher`.
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

    /// Looks up the image of a task. It is neither fetched nor decoded if it is known and has not changed.
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
            // a data URI contains the image itself, and is too long for a cache key
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

    /// Fetches and decodes an image, unless the validators show that it has not changed.
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
        // the header of a file gives the size of the decoded image
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
        // decoding uses the CPU, so it runs outside of the async threads
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

    /// Removes expired entries from the caches.
    pub async fn tidy(&self) {
        self.places.tidy().await;
        self.pixels.tidy().await;
    }

    /// The memory budget that requests share.
    pub fn budget(&self) -> &Budget {
        &self.fetcher.budget
    }

    /// Usage of the caches: known places, and decoded pixels.
    pub fn usage(&self) -> [(&'static str, Usage); 2] {
        [
            ("places", self.places.usage()),
            ("pixels", self.pixels.usage()),
        ]
    }
}

/// Approximate size in bytes of a cached place.
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

    /// A test host, which counts how often it sent the image and how often it answered 304 (not modified).
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
        // its pixels are cached, and need no other request
        assert_eq!(again.pixels().await.unwrap().get_pixel(0, 0).0, [0; 3]);
        // the same image at another URL
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
        // pixels that are not cached are fetched again
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
