//! One certificate authority, and for each site a server and a client certificate where libvirt looks for them.

use std::{fs, net::IpAddr, path::Path};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::shell::{During as _, LabError, Result};

/// A certificate authority of the lab's own.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one; its key is nowhere but in memory.
    ///
    /// # Errors
    /// The random numbers failed.
    pub fn new(name: &str) -> Result<Authority> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(|error| refused(name, &error))?;
        let certificate = params.self_signed(&key).map_err(|error| refused(name, &error))?;
        Ok(Authority { certificate, issuer: Issuer::new(params, key) })
    }

    /// Writes below `pki` (a site's `/etc/pki`): `CA/cacert.pem`, `libvirt/{servercert,clientcert}.pem` and
    /// `libvirt/private/{serverkey,clientkey}.pem`, for a host of that name and address.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn equip(&self, pki: &Path, name: &str, address: IpAddr) -> Result<()> {
        write(&pki.join("CA/cacert.pem"), &self.certificate.pem())?;
        for (role, purpose) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let names = vec![name.to_owned(), address.to_string()];
            let mut params = CertificateParams::new(names).map_err(|error| refused(name, &error))?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![purpose];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate().map_err(|error| refused(name, &error))?;
            let certificate = params.signed_by(&key, &self.issuer).map_err(|error| refused(name, &error))?;
            write(&pki.join(format!("libvirt/{role}cert.pem")), &certificate.pem())?;
            write(&pki.join(format!("libvirt/private/{role}key.pem")), &key.serialize_pem())?;
        }
        Ok(())
    }
}

fn refused(name: &str, error: &rcgen::Error) -> LabError {
    LabError::Other(format!("cannot make a certificate for {name}: {error}"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).during(|| format!("make {}", parent.display()))?;
    }
    fs::write(path, text).during(|| format!("write {}", path.display()))
}
