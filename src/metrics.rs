//! What is counted, for Prometheus.

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
use crate::pipeline::loading::{Loading, Status};
use crate::pipeline::scheduler::Urgency;
use crate::pipeline::timings::Timings;
use crate::store::Usage;

/// All counters; clones count together.
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
    kept_bytes: Family<StageLabels, Gauge>,
    request_memory: Gauge,
    request_memory_peak: Gauge,
    ready: Gauge<f64, AtomicU64>,
    answered: Arc<AtomicU64>,
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

/// Seconds: from a health check to a batch at its deadline.
const REQUEST_BUCKETS: [f64; 9] = [0.005, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 40.0, 100.0];
/// Seconds: from the demo models to a huge one on a small CPU.
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
        registry.register("requests", "HTTP requests answered", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time to answer a request",
            Unit::Seconds,
            request_time.clone(),
        );
        registry.register(
            "predictions",
            "Images that the models looked at",
            predictions.clone(),
        );
        registry.register(
            "prediction_failures",
            "Tasks of a batch, and interactive requests, without a prediction",
            failures.clone(),
        );
        registry.register("detections", "Objects found", detections.clone());
        registry.register("regions", "Regions answered", regions.clone());
        registry.register_with_unit(
            "detector_duration",
            "Time of the detector for an image",
            Unit::Seconds,
            detector_time.clone(),
        );
        registry.register_with_unit(
            "segmenter_duration",
            "Time of the segmenter for an image, where there was something to segment",
            Unit::Seconds,
            segmenter_time.clone(),
        );
        registry.register(
            "waiting",
            "Requests of annotators that wait or are worked on",
            waiting.clone(),
        );
        let steps = Family::<UrgencyLabels, Gauge>::default();
        registry.register(
            "steps",
            "Steps of the models that wait or are computed",
            steps.clone(),
        );
        let (hits, misses) = (Family::default(), Family::default());
        registry.register(
            "store_hits",
            "Results of a stage that were kept",
            Family::clone(&hits),
        );
        registry.register(
            "store_misses",
            "Results of a stage that were computed or fetched",
            Family::clone(&misses),
        );
        let kept_bytes = Family::<StageLabels, Gauge>::default();
        registry.register_with_unit(
            "store",
            "Results of a stage that are kept now",
            Unit::Bytes,
            kept_bytes.clone(),
        );
        let (request_memory, request_memory_peak) = (Gauge::default(), Gauge::default());
        registry.register_with_unit(
            "request_memory",
            "Memory that requests take now: bodies, image files, pixels, results",
            Unit::Bytes,
            request_memory.clone(),
        );
        registry.register_with_unit(
            "request_memory_peak",
            "The most memory that requests took at a time",
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
            kept_bytes,
            request_memory,
            request_memory_peak,
            ready,
            answered: Arc::default(),
        }
    }
}

impl Metrics {
    /// A request was answered; `route` is one of the server's own.
    pub fn request(&self, route: &str, status: u16, time: Duration) {
        if matches!(route, "/predict" | "/setup" | "/webhook") {
            self.answered.fetch_add(1, Ordering::Relaxed);
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

    /// The models looked at an image, and found so many objects if they searched for any. Where everything was kept from
    /// before, nothing is counted.
    pub fn looked_at(&self, found: usize, timings: &Timings) {
        let sum = |stages: &[&str]| stages.iter().map(|stage| timings.of(stage)).sum();
        let detector: Duration = sum(&["image_features", "text_features", "queries"]);
        let segmenter: Duration = sum(&["image_embeddings", "masks"]);
        if detector + segmenter == Duration::ZERO {
            return;
        }
        self.predictions.inc();
        self.detections.inc_by(found as u64);
        for (time, histogram) in [
            (detector, &self.detector_time),
            (segmenter, &self.segmenter_time),
        ] {
            if !time.is_zero() {
                histogram.observe(time.as_secs_f64());
            }
        }
    }

    /// Requests with a body that were answered so far; whoever asks for the health does so all the time.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Regions go out.
    pub fn regions(&self, count: usize) {
        self.regions.inc_by(count as u64);
    }

    /// A task got no prediction.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// Everything in Prometheus' text format, with the state of the queue, the models and the store as it is now.
    ///
    /// # Errors
    /// If the text cannot be written.
    pub fn render(
        &self,
        waiting: usize,
        steps: [usize; Urgency::ALL.len()],
        loading: &Loading,
        budget: &Budget,
        kept: impl IntoIterator<Item = (&'static str, Usage)>,
    ) -> Result<String, std::fmt::Error> {
        self.waiting.set(waiting as i64);
        let is_ready = matches!(loading.status(), Status::Ready(_));
        self.request_memory.set(budget.used() as i64);
        self.request_memory_peak.set(budget.peak() as i64);
        self.ready.set(f64::from(u8::from(is_ready)));
        for (urgency, count) in Urgency::ALL.into_iter().zip(steps) {
            let urgency = urgency.name();
            let labels = UrgencyLabels { urgency };
            self.steps.get_or_create(&labels).set(count as i64);
        }
        for (stage, usage) in kept {
            let labels = StageLabels { stage };
            self.kept_bytes
                .get_or_create(&labels)
                .set(usage.bytes as i64);
            // counters only grow: what is new is added
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
