//! Rows that versions 1 to 4 had otherwise: deployments and plans did not say how numbers are kept
//! (`Precision`), and numbers were kept as the files have them.

use super::deployments::Deployment;
use trireme_shared::ids::{DeploymentId, Epoch, Replica};
use trireme_shared::plan::{DeploymentSpec, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use wincode::{SchemaRead, SchemaWrite};

/// A row of these versions: its fields in the order of its bytes. Of today's it lacks those that are `new`.
macro_rules! row {
    ($old:ident of $today:ident { $($field:ident: $value:ty),+ $(,)? } $(new $new:ident)?) => {
        #[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
        pub struct $old {
            $(pub $field: $value),+
        }

        impl From<$old> for $today {
            fn from(old: $old) -> Self {
                Self {
                    $($field: old.$field.into(),)+
                    $($new: Default::default(),)?
                }
            }
        }

        impl From<$today> for $old {
            fn from(today: $today) -> Self {
                Self {
                    $($field: today.$field.into()),+
                }
            }
        }
    };
}

row! {
    SpecV4 of DeploymentSpec {
        model: ModelRef,
        tensor_parallel: u16,
        pipeline_parallel: u16,
        replicas: u16,
        link: LinkPolicy,
    } new precision
}

row! {
    DeploymentV4 of Deployment { id: DeploymentId, spec: SpecV4, created_at: u64 }
}

row! {
    PlanV4 of ReplicaPlan {
        deployment: DeploymentId,
        replica: Replica,
        epoch: Epoch,
        model: ModelRef,
        tensor_parallel: u16,
        pipeline_parallel: u16,
        link: LinkPolicy,
        ranks: Vec<RankPlacement>,
        kv_pages: u32,
        context: u32,
        nonce: [u8; 16],
    } new precision
}
