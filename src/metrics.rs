//! Prometheus metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::budget::Budget;
use crate::pipeline::handle::{LoadStatus, ModelsHandle};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::timings::Timings;
use crate::store::Usage;

/// All metrics of the server. Clones share their values.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_time: Family<RouteLabels, Histogram>,
    predictions: Counter,
    failures: Counter,
    detections: Counter,
    regions: Counter,
    detector_time: Histogram,
    segmenter_time: Histogram,
    waiting: Gauge,
    steps: Family<UrgencyLabels, Gauge>,
    hits: Family<StageLabels, Counter>,
    misses: Family<StageLabels, Counter>,
    cached_bytes: Family<StageLabels, Gauge>,
    request_memory: Gauge,
    request_memory_peak: Gauge,
    ready: Gauge<f64, AtomicU64>,
    work_requests: Arc<AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UrgencyLabels {
    urgency: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Bucket bounds in seconds, from a health check to a batch that reaches its deadline.
const REQUEST_BUCKETS: [f64; 9] = [0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 40.0, 100.0];
/// Bucket bounds in seconds, from the demo models to a huge model on a small CPU.
const MODEL_BUCKETS: [f64; 9] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("groundling");
        let histogram = || Histogram::new(MODEL_BUCKETS);
        let request_time: Family<RouteLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        let requests = Family::default();
        let (predictions, failures) = (Counter::default(), Counter::default());
        let (detections, regions) = (Counter::default(), Counter::default());
        let (detector_time, segmenter_time) = (histogram(), histogram());
        let (waiting, ready) = (Gauge::default(), Gauge::default());
        registry.register(
            "requests",
            "HTTP requests that were answered",
            requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time to answer a request",
            Unit::Seconds,
            request_time.clone(),
        );
        registry.register(
            "predictions",
            "Images for which the models computed something",
            predictions.clone(),
        );
        registry.register(
            "prediction_failures",
            "Batch tasks and interactive requests that got no prediction",
            failures.clone(),
        );
        registry.register(
            "detections",
            "Objects that the detector found",
            detections.clone(),
        );
        registry.register("regions", "Regions in responses", regions.clone());
        registry.register_with_unit(
            "detector_duration",
            "Time of the detector's stages for an image",
            Unit::Seconds,
            detector_time.clone(),
        );
        registry.register_with_unit(
            "segmenter_duration",
            "Time of the segmenter's stages for an image with objects to segment",
            Unit::Seconds,
            segmenter_time.clone(),
        );
        registry.register(
            "waiting",
            "Interactive requests that wait or are computed",
            waiting.clone(),
        );
        let steps = Family::<UrgencyLabels, Gauge>::default();
        registry.register(
            "steps",
            "Model steps that wait or are computed",
            steps.clone(),
        );
        let (hits, misses) = (Family::default(), Family::default());
        registry.register(
            "store_hits",
            "Results of a stage that were cached",
            Family::clone(&hits),
        );
        registry.register(
            "store_misses",
            "Results of a stage that were computed or fetched",
            Family::clone(&misses),
        );
        let cached_bytes = Family::<StageLabels, Gauge>::default();
        registry.register_with_unit(
            "store",
            "Size of the cached results of a stage",
            Unit::Bytes,
            cached_bytes.clone(),
        );
        let (request_memory, request_memory_peak) = (Gauge::default(), Gauge::default());
        registry.register_with_unit(
            "request_memory",
            "Memory that all requests use: bodies, image files, pixels, results",
            Unit::Bytes,
            request_memory.clone(),
        );
        registry.register_with_unit(
            "request_memory_peak",
            "Largest memory that all requests used at the same time",
            Unit::Bytes,
            request_memory_peak.clone(),
        );
        registry.register("ready", "Whether the models are loaded", ready.clone());
        Self {
            registry: Arc::new(registry),
            requests,
            request_time,
            predictions,
            failures,
            detections,
            regions,
            detector_time,
            segmenter_time,
            waiting,
            steps,
            hits,
            misses,
            cached_bytes,
            request_memory,
            request_memory_peak,
            ready,
            work_requests: Arc::default(),
        }
    }
}

impl Metrics {
    /// Counts an answered request. `route` must be a route of the server, or `other`, so that clients cannot create new
    /// label values.
    pub fn record_request(&self, route: &str, status: u16, time: Duration) {
        if matches!(route, "/predict" | "/setup" | "/webhook") {
            self.work_requests.fetch_add(1, Ordering::Relaxed);
        }
        let labels = RequestLabels {
            route: route.to_owned(),
            status,
        };
        self.requests.get_or_create(&labels).inc();
        let route = route.to_owned();
        let histogram = self.request_time.get_or_create(&RouteLabels { route });
        histogram.observe(time.as_secs_f64());
    }

    /// Records that the models processed an image, and how many objects the detector found (0 if it did not run).
    /// Nothing is recorded if all results came from the cache.
    pub fn record_prediction(&self, detections: usize, timings: &Timings) {
        let sum = |stages: &[&str]| stages.iter().map(|stage| timings.of(stage)).sum();
        let detector: Duration = sum(&["image_features", "text_features", "queries"]);
        let segmenter: Duration = sum(&["image_embeddings", "masks"]);
        if detector + segmenter == Duration::ZERO {
            return;
        }
        self.predictions.inc();
        self.detections.inc_by(detections as u64);
        for (time, histogram) in [
            (detector, &self.detector_time),
            (segmenter, &self.segmenter_time),
        ] {
            if !time.is_zero() {
                histogram.observe(time.as_secs_f64());
            }
        }
    }

    /// The number of `/predict`, `/setup` and `/webhook` requests answered so far. Health checks are not counted: they
    /// arrive all the time, also when the server is idle.
    pub fn work_requests(&self) -> u64 {
        self.work_requests.load(Ordering::Relaxed)
    }

    /// Counts the regions of a response.
    pub fn record_regions(&self, count: usize) {
        self.regions.inc_by(count as u64);
    }

    /// Counts a task that got no prediction.
    pub fn record_failure(&self) {
        self.failures.inc();
    }

    /// Renders all metrics in the OpenMetrics text format, with the current state of the queue, the models and the
    /// caches.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn render(
        &self,
        waiting: usize,
        steps: [usize; Urgency::ALL.len()],
        models: &ModelsHandle,
        budget: &Budget,
        caches: impl IntoIterator<Item = (&'static str, Usage)>,
    ) -> Result<String, std::fmt::Error> {
        self.waiting.set(waiting as i64);
        let is_ready = matches!(models.status(), LoadStatus::Ready(_));
        self.request_memory.set(budget.used() as i64);
        self.request_memory_peak.set(budget.peak() as i64);
        self.ready.set(f64::from(u8::from(is_ready)));
        for (urgency, count) in Urgency::ALL.into_iter().zip(steps) {
            let urgency = urgency.name();
            let labels = UrgencyLabels { urgency };
            self.steps.get_or_create(&labels).set(count as i64);
        }
        for (stage, usage) in caches {
            let labels = StageLabels { stage };
            self.cached_bytes
                .get_or_create(&labels)
                .set(usage.bytes as i64);
            // a counter can only be increased, so only the difference is added
            for (family, total) in [(&self.hits, usage.hits), (&self.misses, usage.misses)] {
                let counter = family.get_or_create(&labels);
                counter.inc_by(total.saturating_sub(counter.get()));
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
