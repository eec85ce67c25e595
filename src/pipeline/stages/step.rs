//! Runs a step of a stage. If the device has no memory left, cached results make room for it.

use std::sync::Arc;
use std::time::Instant;

use super::{StageError, StageRequest, Stages};
use crate::models::DeviceFailure;

impl Stages {
    /// Runs one step of a stage through the scheduler. `work` runs a second time, without the results that are cached on
    /// the device, if the device has too little memory.
    ///
    /// # Errors
    /// The error of the work, except for failures of the device: [`StageError::DeviceMemory`], or
    /// [`StageError::ModelsUnavailable`] for this and all later steps.
    pub(super) async fn step<T: Send + 'static>(
        &self,
        stage: &'static str,
        request: StageRequest<'_>,
        work: impl Fn() -> Result<T, StageError> + Send + Sync + 'static,
    ) -> Result<T, StageError> {
        let work = Arc::new(work);
        let result = self.attempt(stage, request, work.clone()).await;
        if failure(&result) != Some(DeviceFailure::OutOfMemory) {
            return self.checked(result);
        }
        tracing::warn!(
            stage,
            "the device has too little free memory; the step is repeated without the cached results"
        );
        self.device_results.clear().await;
        self.checked(self.attempt(stage, request, work).await)
    }

    async fn attempt<T: Send + 'static>(
        &self,
        stage: &'static str,
        request: StageRequest<'_>,
        work: Arc<impl Fn() -> Result<T, StageError> + Send + Sync + 'static>,
    ) -> Result<T, StageError> {
        let timed = move || {
            let _span = tracing::debug_span!("step", stage).entered();
            let start = Instant::now();
            (work(), start.elapsed())
        };
        let (result, time) = self.scheduler.run(request.urgency, timed).await?;
        request.timings.computed(stage, time);
        result
    }

    /// Translates a failure of the device.
    fn checked<T>(&self, result: Result<T, StageError>) -> Result<T, StageError> {
        match (failure(&result), result) {
            (Some(DeviceFailure::OutOfMemory), Err(error)) => {
                Err(StageError::DeviceMemory(error.to_string()))
            }
            (Some(DeviceFailure::Lost), Err(error)) => {
                Err(self.models.lose_device(error.to_string()).into())
            }
            (_, result) => result,
        }
    }
}

fn failure<T>(result: &Result<T, StageError>) -> Option<DeviceFailure> {
    match result {
        Err(StageError::Predict(error)) => error.device_failure(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::pipeline::PredictError;
    use crate::pipeline::handle::{LoadStatus, ModelsHandle, ModelsUnavailable, RetryDelays};
    use crate::pipeline::scheduler::{Scheduler, Urgency};
    use crate::pipeline::testing::demo_models;
    use crate::pipeline::timings::Timings;
    use crate::prompt::Prompt;
    use crate::segmenter::SegmentError;

    fn stages() -> Stages {
        let load = |_| Ok::<_, String>(demo_models());
        let models = ModelsHandle::start(RetryDelays::default(), load).unwrap();
        Stages::new(Scheduler::start().unwrap(), models, 1 << 20, None)
    }

    fn model_error(text: &str) -> StageError {
        let error = candle_core::Error::Msg(text.to_owned());
        StageError::Predict(PredictError::Segment(SegmentError::Model(error)))
    }

    const OUT_OF_MEMORY: &str = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
    const LOST: &str = "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access\")";

    /// The result of a step that fails the first `failures` times, and how often it ran.
    async fn run(
        stages: &Stages,
        failures: u32,
        text: &'static str,
    ) -> (Result<u32, StageError>, u32) {
        let timings = Timings::default();
        let request = StageRequest {
            urgency: Urgency::Annotator,
            timings: &timings,
        };
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let work = move || match counted.fetch_add(1, Ordering::Relaxed) {
            run if run < failures => Err(model_error(text)),
            run => Ok(run),
        };
        let result = stages.step("masks", request, work).await;
        (result, runs.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_step_without_memory_is_repeated_once_and_then_reported() {
        let stages = stages();
        let (result, runs) = run(&stages, 1, OUT_OF_MEMORY).await;
        assert_eq!((result.unwrap(), runs), (1, 2));
        let (result, runs) = run(&stages, 9, OUT_OF_MEMORY).await;
        assert!(
            matches!(result, Err(StageError::DeviceMemory(_))),
            "{result:?}"
        );
        assert_eq!(runs, 2);
        // the models can still be used
        let models = stages.models_handle().get().await;
        assert!(models.is_ok(), "{models:?}");
    }

    #[tokio::test]
    async fn the_results_of_all_models_make_room() {
        let own = stages();
        let load = |_| Ok::<_, String>(demo_models());
        let models = ModelsHandle::start(RetryDelays::default(), load).unwrap();
        let other = Stages::beside(&own, models, 1 << 20);
        let models = demo_models();
        let caption = &models
            .detector()
            .unwrap()
            .passes(&Prompt::parse("star").unwrap())
            .unwrap()[0]
            .caption;
        let text = models.detector().unwrap().encode_text(caption).unwrap();
        for stages in [&own, &other] {
            stages.texts.insert(vec![1], text.clone()).await;
        }
        run(&own, 1, OUT_OF_MEMORY).await.0.unwrap();
        for stages in [&own, &other] {
            assert!(stages.texts.get(&vec![1]).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_lost_device_makes_the_models_unavailable() {
        let stages = stages();
        stages.models_handle().get().await.unwrap();
        let (result, runs) = run(&stages, 9, LOST).await;
        assert_eq!(runs, 1);
        let is_lost = |error: &ModelsUnavailable| matches!(error, ModelsUnavailable::DeviceLost(_));
        assert!(
            matches!(&result, Err(StageError::ModelsUnavailable(error)) if is_lost(error)),
            "{result:?}"
        );
        assert!(is_lost(&stages.models_handle().get().await.unwrap_err()));
        let status = stages.models_handle().status();
        assert!(
            matches!(status, LoadStatus::DeviceLost { .. }),
            "{status:?}"
        );
    }

    #[tokio::test]
    async fn other_errors_are_returned_as_they_are() {
        let (result, runs) = run(&stages(), 9, "shape mismatch").await;
        assert!(matches!(result, Err(StageError::Predict(_))), "{result:?}");
        assert_eq!(runs, 1);
    }
}
