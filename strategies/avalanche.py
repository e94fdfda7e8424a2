"""Names of Avalanche that geomerge uses: the one module that imports it.

The import takes about ten seconds, and the packages that Avalanche imports warn about each other;
none of those warnings is about code of the user.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401
    from avalanche.benchmarks import GenericCLScenario
    from avalanche.benchmarks.scenarios.online import OnlineCLExperience
    from avalanche.benchmarks.utils import (
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
    )
    from avalanche.benchmarks.utils.data_attribute import TaskLabels
    from avalanche.benchmarks.utils.flat_data import ConstantSequence
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
    from avalanche.core import BasePlugin, SupervisedPlugin
    from avalanche.evaluation import PluginMetric
    from avalanche.evaluation.metric_results import MetricValue
    from avalanche.logging import CSVLogger, TextLogger
    from avalanche.models import DynamicModule, MultiTaskModule, SimpleMLP, as_multitask
    from avalanche.models.utils import is_multi_task_module
    from avalanche.training.plugins import (
        EvaluationPlugin,
        EWCPlugin,
        GEMPlugin,
        LwFPlugin,
        SynapticIntelligencePlugin,
    )
    from avalanche.training.plugins.evaluation import default_evaluator
    from avalanche.training.storage_policy import ExperienceBalancedBuffer
    from avalanche.training.supervised import DER, JointTraining, Naive, StreamingLDA
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.templates.base_sgd import PeriodicEval

__all__ = [
    "DER",
    "BasePlugin",
    "CSVLogger",
    "ConstantSequence",
    "DataAttribute",
    "DynamicModule",
    "EWCPlugin",
    "EvaluationPlugin",
    "ExperienceBalancedBuffer",
    "GEMPlugin",
    "GenericCLScenario",
    "JointTraining",
    "LwFPlugin",
    "MetricValue",
    "MultiTaskModule",
    "Naive",
    "OnlineCLExperience",
    "PeriodicEval",
    "PluginMetric",
    "SimpleMLP",
    "StreamingLDA",
    "SupervisedPlugin",
    "SupervisedTemplate",
    "SynapticIntelligencePlugin",
    "TaskAwareSupervisedClassificationDataset",
    "TaskLabels",
    "TextLogger",
    "as_multitask",
    "default_evaluator",
    "is_multi_task_module",
    "maybe_load_checkpoint",
    "save_checkpoint",
]
