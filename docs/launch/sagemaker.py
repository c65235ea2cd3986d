"""A SageMaker training job, and an endpoint of the model that it made.

    docker build -t bintally --build-arg USER=root .       # then push it to ECR
    python docs/launch/sagemaker.py train --name first --image URI --role ARN \
        --shards s3://mine/shards --output s3://mine/sagemaker --hyperparameters preset finetune
    python docs/launch/sagemaker.py deploy --name first --image URI --role ARN

Region and credentials come from the usual AWS settings. Both commands return at once; the job and
the endpoint are called NAME.
"""

from __future__ import annotations

import boto3
import tyro

HOURS = 24


def train(
    name: str,
    image: str,
    role: str,
    shards: str,
    output: str,
    hyperparameters: dict[str, str],
    instance: str = "ml.g6.4xlarge",
    instances: int = 1,
) -> None:
    """Train on spot machines. Hyperparameters are the flags of `bintally fit`, without dashes."""
    boto3.client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=role,
        AlgorithmSpecification={"TrainingImage": image, "TrainingInputMode": "File"},
        HyperParameters=hyperparameters,
        InputDataConfig=[
            {
                "ChannelName": "shards",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": shards,
                        # Every machine reads its own lanes of all of them.
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
        ],
        OutputDataConfig={"S3OutputPath": output},
        # What lies in /opt/ml/checkpoints is kept here, and is back there on the next spot machine.
        CheckpointConfig={"S3Uri": f"{output}/{name}/checkpoints"},
        ResourceConfig={
            "InstanceType": instance,
            "InstanceCount": instances,
            "VolumeSizeInGB": 200,
        },
        EnableManagedSpotTraining=True,
        StoppingCondition={
            "MaxRuntimeInSeconds": HOURS * 3600,
            "MaxWaitTimeInSeconds": 2 * HOURS * 3600,
        },
    )


def deploy(
    name: str, image: str, role: str, instance: str = "ml.c7i.xlarge", instances: int = 1
) -> None:
    """Serve the model of a training job that is over."""
    client = boto3.client("sagemaker")
    job = client.describe_training_job(TrainingJobName=name)
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=role,
        PrimaryContainer={
            "Image": image,
            "ModelDataUrl": job["ModelArtifacts"]["S3ModelArtifacts"],
        },
    )
    client.create_endpoint_config(
        EndpointConfigName=name,
        ProductionVariants=[
            {
                "VariantName": "all",
                "ModelName": name,
                "InstanceType": instance,
                "InitialInstanceCount": instances,
            }
        ],
    )
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "deploy": deploy})
