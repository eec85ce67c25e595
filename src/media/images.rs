//! The images of tasks. They are identified by the digest of their files, and are fetched and decoded only when their
//! pixels are needed.

use std::sync::Arc;
use std::time::Duration;

use super::decode::{decode, dimensions};
use super::fetch::{FetchResult, Validators};
use super::fetch_permits::FetchPermits;
use super::known_images::{KnownImage, LookupKey};
use super::{Digest, Fetcher, ImageRequest, Location, MediaError, Pixels, TaskImage, run_decoder};
use crate::budget::{Budget, Purpose};
use crate::geometry::ImageSize;
use crate::store::{MemoryCache, Usage};

/// Limits for fetching and caching images.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Maximum number of concurrent fetches from all hosts.
    pub fetches: usize,
    /// Maximum number of concurrent fetches from one host, so that a host that does not answer does not block the
    /// others.
    pub fetches_per_host: usize,
    /// Bytes of decoded images that are cached for later requests.
    pub cache_bytes: u64,
    /// How long the image at a URL is assumed to be unchanged without asking its host.
    pub max_age: Duration,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            fetches: 32,
            fetches_per_host: 6,
            cache_bytes: 64 << 20,
            max_age: Duration::from_secs(60),
        }
    }
}

/// Loads the images of tasks. Clones share the caches.
#[derive(Debug, Clone)]
pub struct Images {
    fetcher: Fetcher,
    limits: ImageLimits,
    known: MemoryCache<LookupKey, Arc<KnownImage>>,
    pixels: MemoryCache<Digest, Pixels>,
    permits: Arc<FetchPermits>,
}

/// Approximate size in bytes of a [`KnownImage`] with its key.
const KNOWN_IMAGE_BYTES: usize = 512;
const KNOWN_IMAGES_BYTES: u64 = 8 << 20;
const TIME_TO_IDLE: Duration = Duration::from_secs(3600);
/// How long decoding waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);

/// The result of a fetch.
pub(super) enum Fetched {
    /// The image has not changed.
    NotModified,
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
        let weigh = |pixels: &Pixels| pixels.as_raw().len();
        Self {
            fetcher,
            limits,
            known: MemoryCache::new(KNOWN_IMAGES_BYTES, TIME_TO_IDLE, |_| KNOWN_IMAGE_BYTES),
            pixels: MemoryCache::new(limits.cache_bytes, TIME_TO_IDLE, weigh),
            permits: Arc::new(FetchPermits::new(limits)),
        }
    }

    /// Looks up the image of a task. It is neither fetched nor decoded if it is known and has not changed.
    ///
    /// # Errors
    /// See [`MediaError`].
    pub async fn look_up<'a>(
        &'a self,
        request: ImageRequest<'a>,
    ) -> Result<TaskImage<'a>, MediaError> {
        let task_image = |found: &KnownImage, pixels| {
            TaskImage::new(self, request, found.digest, found.size, pixels)
        };
        let location = self.fetcher.locate(request)?;
        if let Location::Inline(_) = location {
            // a data URI contains the image itself, and is too long for a cache key
            let Fetched::New { digest, pixels, .. } = self.fetch(location, request, None).await?
            else {
                return Err(MediaError::Changed("the data URI".to_owned()));
            };
            let size = ImageSize::of(&pixels);
            return Ok(TaskImage::new(self, request, digest, size, Some(pixels)));
        }
        let key = LookupKey::new(request);
        let known = self.known.get(&key).await;
        if let Some(found) = &known
            && !matches!(location, Location::File { .. })
            && found.validation_age() < self.limits.max_age
        {
            return Ok(task_image(found, None));
        }
        let validators = known.as_ref().map(|found| &found.validators);
        match self.fetch(location, request, validators).await? {
            Fetched::NotModified => match known {
                Some(found) => {
                    found.mark_validated();
                    Ok(task_image(&found, None))
                }
                None => Err(MediaError::Changed(key.url)),
            },
            Fetched::New {
                digest,
                pixels,
                validators,
            } => {
                let size = ImageSize::of(&pixels);
                let found = Arc::new(KnownImage::new(digest, size, validators));
                self.known.insert(key, found.clone()).await;
                Ok(task_image(&found, Some(pixels)))
            }
        }
    }

    /// The image with this digest, if its pixels are cached. `request` is for messages.
    pub async fn cached<'a>(
        &'a self,
        digest: &Digest,
        request: ImageRequest<'a>,
    ) -> Option<TaskImage<'a>> {
        let pixels = self.cached_pixels(digest).await?;
        let size = ImageSize::of(&pixels);
        Some(TaskImage::new(self, request, *digest, size, Some(pixels)))
    }

    /// The pixels of an image, if they are cached.
    pub(super) async fn cached_pixels(&self, digest: &Digest) -> Option<Pixels> {
        self.pixels.get(digest).await
    }

    /// Fetches and decodes the image of a request, whatever is known about it.
    pub(super) async fn fetch_again(
        &self,
        request: ImageRequest<'_>,
    ) -> Result<Fetched, MediaError> {
        let location = self.fetcher.locate(request)?;
        self.fetch(location, request, None).await
    }

    /// Fetches and decodes an image, unless the validators show that it has not changed.
    async fn fetch(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<Fetched, MediaError> {
        let name = location.describe(request.label_studio);
        let permits = self.permits.acquire(location.host()).await;
        let result = self.fetcher.fetch_file(location, request, known).await?;
        drop(permits);
        let FetchResult::File(file) = result else {
            return Ok(Fetched::NotModified);
        };
        let max_pixels = self.fetcher.config.max_pixels;
        // the header of a file gives the size of the decoded image
        let decoded = dimensions(&file.bytes).map_or(0, |(width, height)| {
            3 * (width as usize)
                .saturating_mul(height as usize)
                .min(max_pixels)
        });
        let budget = &self.fetcher.budget;
        let memory = budget.reserve(Purpose::Pixels, decoded, MEMORY_TIMEOUT);
        let memory = match memory.await {
            Ok(memory) => memory,
            Err(source) => return Err(MediaError::Memory { url: name, source }),
        };
        let validators = file.validators.clone();
        let decode = move || {
            let digest = Digest::of(&file.bytes);
            decode(&file.bytes, max_pixels).map(|image| (digest, image))
        };
        let (digest, image) = run_decoder(name, decode).await?;
        let image = Arc::new(image);
        self.pixels
            .insert(digest, Pixels::new(image.clone(), None))
            .await;
        Ok(Fetched::New {
            digest,
            pixels: Pixels::new(image, Some(memory)),
            validators,
        })
    }

    /// Removes expired entries from the caches.
    pub async fn run_maintenance(&self) {
        self.known.run_maintenance().await;
        self.pixels.run_maintenance().await;
    }

    /// The memory budget that requests share.
    pub fn budget(&self) -> &Budget {
        &self.fetcher.budget
    }

    /// Usage of the caches: known images (`places`), and decoded pixels.
    pub fn usage(&self) -> [(&'static str, Usage); 2] {
        [
            ("places", self.known.usage()),
            ("pixels", self.pixels.usage()),
        ]
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

    use image::RgbImage;

    use super::*;
    use crate::label_studio::LabelStudio;
    use crate::media::FetcherConfig;
    use crate::media::guard::AllowedHosts;

    fn png(shade: u8) -> Vec<u8> {
        let image = RgbImage::from_pixel(5, 3, image::Rgb([shade; 3]));
        let mut png = vec![];
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        image.write_with_encoder(encoder).unwrap();
        png
    }

    /// A test host, which counts how often it sent the image and how often it answered 304 (not modified).
    #[derive(Debug, Default)]
    struct FakeHost {
        sent: AtomicUsize,
        not_modified: AtomicUsize,
        shade: AtomicUsize,
    }

    async fn serve_image(State(host): State<Arc<FakeHost>>, headers: HeaderMap) -> Response {
        let shade = host.shade.load(Ordering::SeqCst);
        let etag = format!("\"{shade}\"");
        if headers
            .get("if-none-match")
            .is_some_and(|known| *known == *etag)
        {
            host.not_modified.fetch_add(1, Ordering::SeqCst);
            return StatusCode::NOT_MODIFIED.into_response();
        }
        host.sent.fetch_add(1, Ordering::SeqCst);
        ([("etag", etag)], png(shade as u8)).into_response()
    }

    async fn start() -> (Arc<FakeHost>, String) {
        let host = Arc::new(FakeHost::default());
        let app = Router::new()
            .route("/{name}", get(serve_image))
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
    async fn an_image_is_fetched_once_and_revalidated_afterwards() {
        let (host, url) = start().await;
        let (a, b) = (format!("{url}/a.png"), format!("{url}/b.png"));
        let studio = LabelStudio::default();
        let sent = || host.sent.load(Ordering::SeqCst);
        let not_modified = || host.not_modified.load(Ordering::SeqCst);

        let caching = images(ImageLimits::default(), None);
        let first = caching.look_up(request(&a, &studio)).await.unwrap();
        let again = caching.look_up(request(&a, &studio)).await.unwrap();
        assert_eq!((first.digest, sent(), not_modified()), (again.digest, 1, 0));
        assert_eq!((again.size.width, again.size.height), (5, 3));
        // its pixels are cached, and need no other request
        assert_eq!(again.pixels().await.unwrap().get_pixel(0, 0).0, [0; 3]);
        // the same image at another URL
        let other = caching.look_up(request(&b, &studio)).await.unwrap();
        assert_eq!((other.digest, sent()), (first.digest, 2));

        let revalidating = images(
            ImageLimits {
                max_age: Duration::ZERO,
                cache_bytes: 0,
                ..ImageLimits::default()
            },
            None,
        );
        let first = revalidating.look_up(request(&a, &studio)).await.unwrap();
        let again = revalidating.look_up(request(&a, &studio)).await.unwrap();
        assert_eq!((first.digest, sent(), not_modified()), (again.digest, 3, 1));
        // pixels that are not cached are fetched again
        assert_eq!(again.pixels().await.unwrap().get_pixel(0, 0).0, [0; 3]);
        assert_eq!(sent(), 4);
        host.shade.store(9, Ordering::SeqCst);
        let error = again.pixels().await.unwrap_err();
        assert!(matches!(error, MediaError::Changed(_)), "{error}");
        let changed = revalidating.look_up(request(&a, &studio)).await.unwrap();
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
        assert!(!again.was_decoded(), "the file was read again");
        std::fs::write(&file, png(2)).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        let open = std::fs::File::options().write(true).open(&file).unwrap();
        open.set_modified(later).unwrap();
        let changed = images.look_up(request(value, &studio)).await.unwrap();
        assert_ne!(changed.digest, first.digest);
    }
}
